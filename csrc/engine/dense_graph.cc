#include "engine/dense_graph.h"

#include <algorithm>
#include <mutex>
#include <openvino/runtime/core.hpp>
#include <openvino/runtime/intel_cpu/properties.hpp>
#include <openvino/runtime/properties.hpp>
#include <set>

#include "recengine/error.h"

namespace recengine {
namespace {

std::string to_string(const std::vector<int64_t>& dims) {
  std::string text;
  for (const int64_t dim : dims) {
    text += text.empty() ? "" : ", ";
    text += dim == kDynamicDim ? "?" : std::to_string(dim);
  }
  return "[" + text + "]";
}

void require_described(const std::string& what, const std::vector<GraphTensor>& described,
                       const std::vector<GraphTensor>& expected) {
  for (const GraphTensor& tensor : expected) {
    const auto found =
        std::find_if(described.begin(), described.end(),
                     [&](const GraphTensor& other) { return other.name == tensor.name; });
    if (found == described.end()) {
      throw BundleError(what + ": the manifest has no tensor \"" + tensor.name + "\"");
    }
    if (found->dims != tensor.dims) {
      throw BundleError(what + ": tensor \"" + tensor.name + "\": expected dims " +
                        to_string(tensor.dims) + ", found " + to_string(found->dims));
    }
  }
  if (described.size() != expected.size()) {
    throw BundleError(what + ": expected " + std::to_string(expected.size()) +
                      " tensors in the manifest, found " + std::to_string(described.size()));
  }
}

// OpenVINO quotes what it read, which may be any bytes; a message must be text.
std::string printable(const std::string& message) {
  constexpr size_t kMaxLength = 500;
  std::string text = message.substr(0, kMaxLength);
  std::replace_if(text.begin(), text.end(), [](char c) { return c < ' ' || c > '~'; }, ' ');
  return text;
}

// One per process: each ov::Core loads its plugins anew.
ov::Core& core() {
  static ov::Core core;
  return core;
}

std::shared_ptr<ov::Model> read(const GraphSpec& spec, const BundleFiles& files) {
  const MappedFile& file = files.file(spec.file);
  if (spec.onnx && spec.weights) return core().read_model(file.path());
  const auto* text = reinterpret_cast<const char*>(file.bytes().data);
  const std::string model(text, static_cast<size_t>(file.bytes().size));
  if (!spec.weights) return core().read_model(model, ov::Tensor());
  const Span<const uint8_t> bytes = files.file(*spec.weights).bytes();
  if (bytes.empty()) return core().read_model(model, ov::Tensor());
  const ov::Shape shape{static_cast<size_t>(bytes.size)};
  return core().read_model(model, ov::Tensor(ov::element::u8, shape, bytes.data));
}

// One stream a model: OpenVINO then runs the graph on the calling thread. Several streams have
// threads of their own, and handing over to them costs more than a small graph does.
ov::CompiledModel compile(const std::shared_ptr<ov::Model>& model, Precision precision,
                          const EngineOptions& options) {
  const bool bf16 = precision == Precision::kBFloat16;
  return core().compile_model(
      model, "CPU", ov::hint::inference_precision(bf16 ? ov::element::bf16 : ov::element::f32),
      ov::num_streams(1), ov::inference_num_threads(options.threads_per_stream),
      // The threads are the process's, not OpenVINO's to place.
      ov::hint::enable_cpu_pinning(false), ov::hint::enable_hyper_threading(true));
}

std::vector<int64_t> dims_of(const ov::PartialShape& shape) {
  std::vector<int64_t> dims;
  for (const ov::Dimension& dim : shape) {
    dims.push_back(dim.is_static() ? dim.get_length() : kDynamicDim);
  }
  return dims;
}

// The position of a tensor among the ports. A dim that the stage fixes may be open in the graph,
// not the other way round.
size_t find_port(const std::string& what, const std::vector<ov::Output<const ov::Node>>& ports,
                 const GraphTensor& expected) {
  for (size_t i = 0; i < ports.size(); ++i) {
    if (ports[i].get_names().count(expected.name) == 0) continue;
    const ov::PartialShape shape = ports[i].get_partial_shape();
    const std::vector<int64_t> dims = shape.rank().is_static() ? dims_of(shape) : expected.dims;
    bool same = dims.size() == expected.dims.size();
    for (size_t d = 0; same && d < dims.size(); ++d) {
      same = dims[d] == kDynamicDim || dims[d] == expected.dims[d];
    }
    if (!same || ports[i].get_element_type() != ov::element::f32) {
      throw CompileError(what + ": tensor \"" + expected.name + "\": expected fp32 " +
                         to_string(expected.dims) + ", found " +
                         ports[i].get_element_type().get_type_name() + " " + to_string(dims));
    }
    return i;
  }
  throw CompileError(what + ": the graph has no tensor \"" + expected.name + "\"");
}

ov::Shape to_shape(const std::vector<int64_t>& dims) { return {dims.begin(), dims.end()}; }

}  // namespace

struct DenseGraph::Compiled {
  // A copy of the compiled graph; it serves one call at a time.
  struct Stream {
    ov::CompiledModel model;
    std::vector<ov::Output<const ov::Node>> inputs;  // in the order of the signature
    ov::Output<const ov::Node> output;
  };
  struct Slot {
    const Stream* stream = nullptr;
    ov::InferRequest request;
  };

  std::string what;
  std::vector<Stream> streams;
  std::mutex mutex;
  std::vector<Slot> idle;
  size_t num_slots = 0;

  Slot take() {
    const std::lock_guard<std::mutex> lock(mutex);
    if (idle.empty()) {
      Stream& stream = streams[num_slots++ % streams.size()];
      return {&stream, stream.model.create_infer_request()};
    }
    Slot slot = std::move(idle.back());
    idle.pop_back();
    return slot;
  }

  void give_back(Slot slot) {
    const std::lock_guard<std::mutex> lock(mutex);
    idle.push_back(std::move(slot));
  }

  void run(const std::vector<GraphArgument>& arguments, Matrix<float> out) {
    Slot slot = take();
    const Stream& stream = *slot.stream;
    for (size_t i = 0; i < arguments.size(); ++i) {
      const ov::Shape shape = to_shape(arguments[i].shape);
      slot.request.set_tensor(stream.inputs[i],
                              ov::Tensor(ov::element::f32, shape, arguments[i].data));
    }
    const ov::Shape shape = to_shape({out.rows, out.cols});
    slot.request.set_tensor(stream.output, ov::Tensor(ov::element::f32, shape, out.data));
    slot.request.infer();
    const ov::Tensor answer = slot.request.get_tensor(stream.output);
    if (answer.get_shape() != shape || answer.data() != out.data) {
      throw RecengineError(what + ": expected an output of shape " +
                           to_string({out.rows, out.cols}));
    }
    give_back(std::move(slot));
  }
};

DenseGraph::DenseGraph(const std::string& name, const GraphSpec& spec,
                       const GraphSignature& signature, const BundleFiles& files,
                       const EngineOptions& options)
    : compiled_(std::make_unique<Compiled>()) {
  compiled_->what = "graph " + name;
  require_described(compiled_->what, spec.inputs, signature.inputs);
  require_described(compiled_->what, spec.outputs, {signature.output});
  const std::string& what = compiled_->what;
  try {
    const std::shared_ptr<ov::Model> model = read(spec, files);
    for (int i = 0; i < options.num_streams; ++i) {
      compiled_->streams.push_back({compile(model, spec.precision, options), {}, {}});
    }
  } catch (const std::exception& error) {
    throw CompileError(what + ": OpenVINO: " + printable(error.what()));
  }
  for (Compiled::Stream& stream : compiled_->streams) {
    const auto inputs = stream.model.inputs();
    if (inputs.size() != signature.inputs.size()) {
      throw CompileError(what + ": expected " + std::to_string(signature.inputs.size()) +
                         " inputs, found " + std::to_string(inputs.size()));
    }
    for (const GraphTensor& input : signature.inputs) {
      stream.inputs.push_back(inputs[find_port(what, inputs, input)]);
    }
    const auto outputs = stream.model.outputs();
    stream.output = outputs[find_port(what, outputs, signature.output)];
  }
}

DenseGraph::~DenseGraph() = default;

void DenseGraph::run(const std::vector<GraphArgument>& inputs, Matrix<float> output) const {
  try {
    compiled_->run(inputs, output);
  } catch (const RecengineError&) {
    throw;
  } catch (const std::exception& error) {
    throw RecengineError(compiled_->what + ": OpenVINO: " + printable(error.what()));
  }
}

}  // namespace recengine
