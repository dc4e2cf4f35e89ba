#!/usr/bin/env bash
# Installs Horovod 0.28.1 into an environment that has TensorFlow, building it where no wheel of an
# earlier build fits. About 4 minutes on two cores; needs a C++17 compiler and make.
#
#     tools/install_horovod.sh [PYTHON]        (by default: python3, as found on the PATH)
#
# Gloo carries the exchanges, so nothing has to be installed beside; where mpicxx is found, MPI is
# built in too. HOROVOD_GPU_OPERATIONS=NCCL and Horovod's other variables have their usual meaning.
# Wheels are kept in ${TFKFAC_WHEELS:-${XDG_CACHE_HOME:-$HOME/.cache}/tfkfac/wheels}.
set -euo pipefail

version=0.28.1
python=$(command -v "${1:-python3}")
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python") # the build changes folders
# As the build finds its helpers: those of the environment first.
PATH=$(dirname "$python"):$PATH

run_python() { "$python" "$@"; }
tensorflow=$(TF_CPP_MIN_LOG_LEVEL=3 run_python -c 'import tensorflow; print(tensorflow.__version__)' 2>/dev/null) || {
  echo "install_horovod: $python has no TensorFlow. Install tfkfac or tensorflow first." >&2
  exit 1
}
tag=$(run_python -c 'import platform, sys; print(f"cp{sys.version_info[0]}{sys.version_info[1]}-{platform.machine()}")')
flavour=cpu-${HOROVOD_GPU_OPERATIONS:-none}
command -v mpicxx >/dev/null && flavour+=-mpi
wheels=${TFKFAC_WHEELS:-${XDG_CACHE_HOME:-$HOME/.cache}/tfkfac/wheels}/tf$tensorflow-$tag-$flavour

main() {
  local wheel
  wheel=$(find_wheel)
  if [ -z "$wheel" ]; then
    build
    wheel=$(find_wheel)
  else
    echo "install_horovod: a wheel of an earlier build: $wheel"
  fi
  run_python -m pip install --quiet cloudpickle packaging psutil pyyaml
  run_python -m pip install --quiet --no-deps --force-reinstall "$wheel"
  run_python -c '
import horovod.tensorflow as hvd
hvd.init()
print(f"install_horovod: Horovod works (gloo {bool(hvd.gloo_built())}, mpi {bool(hvd.mpi_built())})")
' 2>/dev/null
}

find_wheel() {
  mkdir -p "$wheels"
  find "$wheels" -name "horovod-$version-*.whl" | head -n 1
}

build() {
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  echo "install_horovod: building for TensorFlow $tensorflow; the log is $work/build.log"
  run_python -m pip install --quiet setuptools wheel packaging 'cmake<4'
  (
    cd "$work"
    run_python -m pip download --quiet --no-deps --no-binary horovod --no-build-isolation \
      "horovod==$version"
    tar xzf "horovod-$version.tar.gz"
    # Headers of XLA have moved since 0.28.1; all that includes them serves GPUs only.
    sed -i '0,/#if TENSORFLOW_VERSION >= 2006000000/s//#if HAVE_GPU \&\& TENSORFLOW_VERSION >= 2006000000/' \
      "horovod-$version/horovod/tensorflow/xla_mpi_ops.cc"
    cd "horovod-$version"
    export HOROVOD_WITH_GLOO=1 HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITHOUT_PYTORCH=1
    export HOROVOD_WITHOUT_MXNET=1 LDFLAGS=-Wl,-s MAKEFLAGS="-j$(nproc)"
    command -v mpicxx >/dev/null || export HOROVOD_WITHOUT_MPI=1
    run_python -m pip wheel -v --no-build-isolation --no-deps -w "$work/wheels" .
  ) >"$work/build.log" 2>&1 || {
    tail -n 30 "$work/build.log" >&2
    echo "install_horovod: the build failed." >&2
    return 1
  }
  mv "$work"/wheels/horovod-*.whl "$wheels"
}

main
