#!/bin/sh
# The steps of the Dockerfile in a clean folder, for machines without Docker: the build context as .dockerignore leaves
# it, the wheel and what is in it, and the commands of the image away from the repository.
set -eu
python=${PYTHON:-python3}
repository=$(cd "$(dirname "$0")/.." && pwd)
clean=$(mktemp -d)
trap 'rm -rf "$clean"' EXIT

echo "build context"
mkdir "$clean/src"
cd "$repository"
# Tracked and new files, as a clean checkout has them, that a line `!name` of .dockerignore lets in.
sed -n 's/^!//p' .dockerignore | xargs git ls-files --cached --others --exclude-standard -- |
    tar --create --files-from - | tar --extract --directory "$clean/src"
ls "$clean/src"

echo "wheel"
PYTHON=$python sh "$clean/src/tools/install_wheel.sh" "$clean/src" "$clean/opt"
"$python" "$repository/tools/wheel_contents.py" "$clean"/opt/wheel/headrace-*.whl

echo "image"
mkdir "$clean/srv"
cp -r "$clean/src/models" "$clean/src/examples" "$clean/srv"
rm -r "$clean/src" "$clean/opt/wheel"
cd "$clean/srv"
http_port=$("$python" -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
# The command and the health check of the Dockerfile, on a socket and a port of their own, and before there is a store.
env --ignore-environment PATH="$clean/opt/bin:/usr/bin:/bin" PYTHONDONTWRITEBYTECODE=1 \
    HEADRACE_GRPC__LISTEN="[\"unix:$clean/grpc\"]" HEADRACE_HTTP__LISTEN="127.0.0.1:$http_port" \
    HEADRACE_START_WITHOUT_STORE=true sh -euc '
    headrace --version
    headrace serve --config examples/flights/headrace.yaml 2> log &
    trap "kill %1 2> /dev/null || true" EXIT
    for attempt in $(seq 30); do
        headrace health --target "unix:$1" > health 2>&1 && break
        sleep 0.2
    done
    cat health
    grep -q SERVING health || { cat log; exit 1; }
    kill -TERM $! && wait $!
' sh "$clean/grpc"
echo "the image's steps work"
