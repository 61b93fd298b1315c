#!/usr/bin/env bash
# lmms-eval 0.7.3, installed as its metadata allows, evaluates nothing with filelock 4, and says that it succeeded.
#
# Guess before the test: a release's dependencies fit together, and a command whose evaluation fails ends with status 1.
#
# Behaviour: before it asks anything, an evaluation imports `filelock._api`, a private module that version 4 of filelock
# no longer has; the requirement has no bound. The error is logged, no result is written, and the exit status is 0, so a
# script that evaluates several checkpoints goes on. With filelock 3 the same command writes its results.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_HOME="$place/home"
uv venv --quiet --python 3.11
uv pip install --quiet lmms-eval==0.7.3 filelock==4.3.1 torch==2.13.0 transformers==5.19.0 datasets==5.2.0
mkdir tasks
echo '{"question": "Which letter is first?", "answer": "A"}' > questions.json
cat > tasks/letters.yaml <<YAML
task: letters
dataset_path: json
dataset_kwargs:
  data_files:
    test: $place/questions.json
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "answer"
doc_to_visual: !function shown.nothing
generation_kwargs:
  max_new_tokens: 4
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
YAML
echo 'def nothing(doc): return []' > tasks/shown.py

evaluate() {
    local status=0
    .venv/bin/python -m lmms_eval --model dummy --model_args response=A --include_path tasks --tasks letters \
        --output_path "$1" > "$1.log" 2>&1 || status=$?
    echo "filelock $(.venv/bin/python -c 'import filelock; print(filelock.__version__)'): status $status," \
        "$(find . -path "./$1/*_results.json" | wc -l) results"
}

first=$(evaluate four)
grep -o "No module named 'filelock._api'" four.log | head -1
uv pip install --quiet filelock==3.20.0
second=$(evaluate three)
printf '%s\n%s\n' "$first" "$second"
[ "$first" = "filelock 4.3.1: status 0, 0 results" ]
[ "$second" = "filelock 3.20.0: status 0, 1 results" ]
