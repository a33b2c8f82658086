# Sets $python to an interpreter of 3.11 or newer that can make virtual environments, else exits 1 saying what to install.
python=""
for candidate in ${SWITCHYARD_PYTHON:-} python3.11 python3.12 python3.13 python3; do
    if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "Switchyard needs Python 3.11 or newer with the venv module; found none." >&2
    echo "On Debian or Ubuntu: apt-get install python3.11 python3.11-venv. Or name one: SWITCHYARD_PYTHON=/path/to/python" >&2
    exit 1
fi
