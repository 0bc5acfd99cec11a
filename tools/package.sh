# Sourced by the scripts that test another build of the native module than the installed one.

# make_package VENV FOLDER [MODULE]...: a copy of the installed layout, with modules in it, and in
# `site` and `python` what runs it: the interpreter under the virtual environment, so that the
# editable install of the ordinary build does not shadow the copy.
make_package() {
  site=$("$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  python=$("$1/bin/python" -c 'import sys; print(sys._base_executable)')
  rm -rf "$2" && mkdir -p "$2/recengine/backends/recengine"
  cp -rs "$PWD"/recengine/. "$2/recengine/"
  ln -s "$site/openvino" "$2/openvino"
  for module in "${@:3}"; do
    case $module in
      *_native*) cp -f "$module" "$2/recengine/" ;;
      *) cp -f "$module" "$2/recengine/backends/recengine/" ;;
    esac
  done
}
