#!/bin/sh
# An eval job without a client of Troupe's: grpcurl asks the orchestrator for its contracts by reflection.
#
#   go install github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3
#   sh examples/grpcurl.sh 127.0.0.1:4100 problems.jsonl                       # that asks for no token
#   TROUPE_TOKEN_FILE=.troupe/credentials/client.token sh examples/grpcurl.sh 127.0.0.1:4100 problems.jsonl
#
# A lost watch is taken up again with the last "event_id" that was seen, as "after_event_id".
set -eu
target=$1 file=$2 job=grpcurl-$$
call() {
  grpcurl -plaintext ${TROUPE_TOKEN_FILE:+-H "authorization: Bearer $(cat "$TROUPE_TOKEN_FILE")"} \
    -max-msg-sz 67108864 -d "$2" "$target" "troupe.v1.Evaluation/$1"
}

printf '{"job_id": "%s", "dataset_name": "%s", "dataset": "%s", "samples": 1, "target": {"current": {}}}' \
  "$job" "$(basename "$file")" "$(base64 -w0 "$file")" | call CreateEvalJob @
call WatchEvalJob "{\"job_id\": \"$job\", \"after_event_id\": 0}"
call ListEvalItems "{\"job_id\": \"$job\"}"
call GetEvalJob "{\"job_id\": \"$job\"}"
