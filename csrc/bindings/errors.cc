#include <pybind11/pybind11.h>

#include <exception>

#include "recengine/error.h"

namespace py = pybind11;

namespace recengine {
namespace {

void raise(const char* name, const std::exception& error) {
  const py::object type = py::module_::import("recengine.errors").attr(name);
  PyErr_SetString(type.ptr(), error.what());
}

void translate(std::exception_ptr thrown) {
  try {
    std::rethrow_exception(thrown);
  } catch (const InputError& error) {
    raise("InputError", error);
  } catch (const BundleError& error) {
    raise("BundleError", error);
  } catch (const CompileError& error) {
    raise("CompileError", error);
  } catch (const DeviceError& error) {
    raise("DeviceError", error);
  } catch (const RecengineError& error) {
    raise("RecengineError", error);
  }
}

}  // namespace

void bind_errors(py::module_&) { py::register_local_exception_translator(translate); }

}  // namespace recengine
