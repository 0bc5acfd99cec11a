#pragma once

#include <stdexcept>
#include <string>

namespace recengine {

// Root of every error that recengine throws on purpose; the Python tree has the same names.
class RecengineError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// What the caller passed is not what the operation takes.
class InputError : public RecengineError {
 public:
  using RecengineError::RecengineError;
};

// A bundle or a version directory is missing, damaged, or of another format version.
class BundleError : public RecengineError {
 public:
  using RecengineError::RecengineError;
};

// A graph could not be compiled, or did not behave as its manifest says.
class CompileError : public RecengineError {
 public:
  using RecengineError::RecengineError;
};

// The device or instruction set asked for is not there, or failed.
class DeviceError : public RecengineError {
 public:
  using RecengineError::RecengineError;
};

// It has no memory left: later there may be some.
class DeviceMemoryError : public DeviceError {
 public:
  using DeviceError::DeviceError;
};

}  // namespace recengine
