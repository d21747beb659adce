#!/usr/bin/env bash
# Generates item/v1/ from item/v1/item.proto.
#
#   bash proto/generate.sh           lint the contract and write item/v1/
#   bash proto/generate.sh --check   lint the contract and fail, with the difference, if item/v1/ is not up to date
#
# The generators live in an environment of their own, .venv-proto, made here when it is not there (PYTHON says with
# which interpreter). grpcio-tools is the oldest version that pyproject.toml supports: generated code may be older
# than the runtime, never newer.
set -euo pipefail

tools=(grpcio-tools==1.76.0 mypy-protobuf==5.1.0 buf-bin==1.75.0)

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv-proto
generated=(item_pb2.py item_pb2.pyi item_pb2_grpc.py item_pb2_grpc.pyi)

case ${1:-} in
"" | --check) ;;
*)
    echo "usage: bash proto/generate.sh [--check]" >&2
    exit 2
    ;;
esac

if [[ "$(cat "$venv/tools" 2>/dev/null)" != "${tools[*]}" ]]; then
    echo "making $venv with ${tools[*]}" >&2
    "${PYTHON:-python3}" -m venv --clear "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check "${tools[@]}" >&2
    echo "${tools[*]}" >"$venv/tools"
fi
export PATH=$venv/bin:$PATH

buf lint "$root/proto"

fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
(cd "$root/proto" && python -m grpc_tools.protoc --proto_path=. --python_out="$fresh" --pyi_out="$fresh" \
    --grpc_python_out="$fresh" --mypy_grpc_out=quiet,generate_concrete_servicer_stubs:"$fresh" item/v1/item.proto)

for file in "${generated[@]}"; do
    if [[ ${1:-} == --check ]]; then
        diff -u "$root/item/v1/$file" "$fresh/item/v1/$file" || {
            echo "error: item/v1/$file is not what proto/item/v1/item.proto generates: run 'make proto'" >&2
            exit 1
        }
    else
        mv "$fresh/item/v1/$file" "$root/item/v1/$file"
    fi
done
