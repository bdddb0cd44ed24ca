#!/usr/bin/env bash
# stdin: the output of `pip install -v`; stdout: a line every 20th of the build, with what is left.
# ninja numbers the steps it has finished: "[12/138] c++ ...". The estimate is their mean.
SECONDS=${ELAPSED:-0}  # bash counts on from here; a test sets the clock forward
clock() { printf '%d min %02d s' $(($1 / 60)) $(($1 % 60)); }

shown=-1
while IFS= read -r line; do
    [[ $line =~ ^[[:space:]]*\[([0-9]+)/([0-9]+)\][[:space:]] ]] || continue
    finished=${BASH_REMATCH[1]} all=${BASH_REMATCH[2]}
    ((finished * 20 / all > shown)) || continue
    shown=$((finished * 20 / all))
    left=$((SECONDS * (all - finished) / finished))
    printf 'setup:     compiled %d of %d, %s so far, about %s to go\n' \
        "$finished" "$all" "$(clock "$SECONDS")" "$(clock $left)"
done
