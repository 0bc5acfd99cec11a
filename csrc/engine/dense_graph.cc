#include "engine/dense_graph.h"

#include <algorithm>
#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <numeric>
#include <openvino/core/model.hpp>
#include <openvino/op/constant.hpp>
#include <openvino/runtime/core.hpp>
#include <openvino/runtime/intel_cpu/properties.hpp>
#include <openvino/runtime/properties.hpp>
#include <utility>

#include "cpu/thread_pool.h"
#include "recengine/error.h"

namespace recengine {
namespace {

// Batch sizes with a graph of their own; a batch of any size is a few of them. Every one holds a
// copy of the weights, and a graph with many of those does not notice what a new shape costs.
constexpr int64_t kFixedRows[] = {8, 4, 2, 1};
constexpr int64_t kAnyRows = 16;  // that the graph for any size takes at once
constexpr int64_t kMostFixedBytes = int64_t{1} << 20;

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
ov::CompiledModel compile(const std::shared_ptr<const ov::Model>& model, Precision precision) {
  const bool bf16 = precision == Precision::kBFloat16;
  return core().compile_model(
      model, "CPU", ov::hint::inference_precision(bf16 ? ov::element::bf16 : ov::element::f32),
      ov::num_streams(1), ov::inference_num_threads(1),
      // The threads are the process's, not OpenVINO's to place.
      ov::hint::enable_cpu_pinning(false), ov::hint::enable_hyper_threading(true));
}

// The same graph for batches of `rows` only. `usual_cols` takes the place of an open second dim.
std::shared_ptr<const ov::Model> fix_shapes(const std::shared_ptr<const ov::Model>& model,
                                            const GraphSignature& signature, int64_t rows) {
  const std::shared_ptr<ov::Model> fixed = model->clone();
  std::map<std::string, ov::PartialShape> shapes;
  for (const GraphTensor& input : signature.inputs) {
    ov::PartialShape shape{rows};
    for (size_t d = 1; d < input.dims.size(); ++d) {
      const bool open = input.dims[d] == kDynamicDim;
      shape.push_back(open ? signature.usual_cols : input.dims[d]);
    }
    shapes.emplace(input.name, shape);
  }
  fixed->reshape(shapes);
  return fixed;
}

int64_t weight_bytes(const ov::Model& model) {
  size_t bytes = 0;
  for (const auto& node : model.get_ops()) {
    const auto constant = std::dynamic_pointer_cast<const ov::op::v0::Constant>(node);
    if (constant != nullptr) bytes += constant->get_byte_size();
  }
  return static_cast<int64_t>(bytes);
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

// Where the tensors of the signature stand among those of the graph.
struct Ports {
  std::vector<size_t> inputs;  // in the order of the signature
  size_t output = 0;
};

Ports find_ports(const std::string& what, const ov::Model& model, const GraphSignature& signature) {
  if (model.inputs().size() != signature.inputs.size()) {
    throw CompileError(what + ": expected " + std::to_string(signature.inputs.size()) +
                       " inputs, found " + std::to_string(model.inputs().size()));
  }
  Ports ports;
  for (const GraphTensor& input : signature.inputs) {
    ports.inputs.push_back(find_port(what, model.inputs(), input));
  }
  ports.output = find_port(what, model.outputs(), signature.output);
  return ports;
}

ov::Shape to_shape(const std::vector<int64_t>& dims) { return {dims.begin(), dims.end()}; }

// Values of a row of the batch.
int64_t row_width(const GraphArgument& argument) {
  return std::accumulate(argument.shape.begin() + 1, argument.shape.end(), int64_t{1},
                         std::multiplies<>());
}

}  // namespace

struct DenseGraph::Compiled {
  // The graph for one batch size, or for any.
  struct Executable {
    int64_t rows = 0;  // 0: any
    ov::CompiledModel model;
    ov::InferRequest request;
    std::vector<ov::Output<const ov::Node>> inputs;  // in the order of the signature
    ov::Output<const ov::Node> output;
    // The request's own, of a graph for one batch size: to give it others takes longer than to
    // copy.
    std::vector<float*> input_values;
    const float* output_values = nullptr;
  };
  // What one call at a time uses; largest batch size first, the graph for any shape last.
  using Stream = std::vector<Executable>;

  std::string what;
  int64_t cols = 0;  // of the output of the graphs with a batch size
  std::vector<Stream> streams;
  std::mutex mutex;
  std::condition_variable given_back;
  std::vector<Stream*> idle;

  // Runs the rows in parts, several at a time when there are many.
  void run(ThreadPool* pool, const std::vector<GraphArgument>& arguments, Matrix<float> out) {
    const bool fixed = streams[0].size() > 1 && out.cols == cols;
    const int64_t part_rows = fixed ? kFixedRows[0] : kAnyRows;
    const int64_t parts = (out.rows + part_rows - 1) / part_rows;
    const auto run_part = [&](int64_t part) {
      const int64_t row = part * part_rows;
      const Lease lease(*this);
      run_rows(lease.stream, fixed, arguments, row, std::min(row + part_rows, out.rows), out);
    };
    for_each(parts > 2 ? pool : nullptr, parts, run_part);
  }

  // A stream that is idle until then, for as long as this lives.
  struct Lease {
    explicit Lease(Compiled& owner) : compiled(owner), stream(owner.take()) {}
    ~Lease() { compiled.give_back(stream); }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;

    Compiled& compiled;
    Stream& stream;
  };

  Stream& take() {
    std::unique_lock<std::mutex> lock(mutex);
    given_back.wait(lock, [this] { return !idle.empty(); });
    Stream& stream = *idle.back();
    idle.pop_back();
    return stream;
  }

  void give_back(Stream& stream) {
    {
      const std::lock_guard<std::mutex> lock(mutex);
      idle.push_back(&stream);
    }
    given_back.notify_one();
  }

  // Rows [row, end) by the graphs of their sizes, largest first.
  void run_rows(Stream& stream, bool fixed, const std::vector<GraphArgument>& arguments,
                int64_t row, int64_t end, Matrix<float> out) const {
    if (!fixed) {
      infer(stream.back(), arguments, row, {out.row(row), end - row, out.cols});
      return;
    }
    for (Executable& executable : stream) {
      const int64_t rows = executable.rows;
      for (; rows > 0 && row + rows <= end; row += rows) {
        infer_fixed(executable, arguments, row, {out.row(row), rows, out.cols});
      }
    }
  }

  // Rows first_row .. first_row + out.rows - 1 of the arguments, by the graph for so many.
  static void infer_fixed(Executable& executable, const std::vector<GraphArgument>& arguments,
                          int64_t first_row, Matrix<float> out) {
    for (size_t i = 0; i < arguments.size(); ++i) {
      const int64_t width = row_width(arguments[i]);
      std::copy_n(arguments[i].data + first_row * width, out.rows * width,
                  executable.input_values[i]);
    }
    executable.request.infer();
    std::copy_n(executable.output_values, out.rows * out.cols, out.data);
  }

  // The same by the graph for any number.
  void infer(Executable& executable, const std::vector<GraphArgument>& arguments, int64_t first_row,
             Matrix<float> out) const {
    for (size_t i = 0; i < arguments.size(); ++i) {
      ov::Shape shape = to_shape(arguments[i].shape);
      shape[0] = static_cast<size_t>(out.rows);
      const float* data = arguments[i].data + first_row * row_width(arguments[i]);
      executable.request.set_tensor(executable.inputs[i],
                                    ov::Tensor(ov::element::f32, shape, data));
    }
    const ov::Shape shape = to_shape({out.rows, out.cols});
    executable.request.set_tensor(executable.output, ov::Tensor(ov::element::f32, shape, out.data));
    executable.request.infer();
    const ov::Tensor answer = executable.request.get_tensor(executable.output);
    if (answer.get_shape() != shape || answer.data() != out.data) {
      throw RecengineError(what + ": expected an output of shape " +
                           to_string({out.rows, out.cols}));
    }
  }

  Executable prepare(const std::shared_ptr<const ov::Model>& model, int64_t rows,
                     const Ports& ports, Precision precision) const {
    Executable executable;
    executable.rows = rows;
    executable.model = compile(model, precision);
    executable.request = executable.model.create_infer_request();
    for (const size_t input : ports.inputs) {
      executable.inputs.push_back(executable.model.inputs()[input]);
    }
    executable.output = executable.model.outputs()[ports.output];
    if (rows == 0) return executable;
    for (const ov::Output<const ov::Node>& input : executable.inputs) {
      executable.input_values.push_back(executable.request.get_tensor(input).data<float>());
    }
    const ov::Tensor answer = executable.request.get_tensor(executable.output);
    if (answer.get_shape() == to_shape({rows, cols})) {
      executable.output_values = answer.data<float>();
    }
    return executable;
  }
};

DenseGraph::DenseGraph(const std::string& name, const GraphSpec& spec,
                       const GraphSignature& signature, const BundleFiles& files,
                       const EngineOptions& options)
    : pool_(options.pool), compiled_(std::make_unique<Compiled>()) {
  Compiled& compiled = *compiled_;
  compiled.what = "graph " + name;
  require_described(compiled.what, spec.inputs, signature.inputs);
  require_described(compiled.what, spec.outputs, {signature.output});
  const int64_t cols = signature.output.dims[1];
  compiled.cols = cols == kDynamicDim ? signature.usual_cols : cols;
  compiled.streams.resize(static_cast<size_t>(options.num_streams));
  try {
    const std::shared_ptr<const ov::Model> model = read(spec, files);
    const Ports ports = find_ports(compiled.what, *model, signature);
    std::vector<std::pair<int64_t, std::shared_ptr<const ov::Model>>> variants;
    if (compiled.cols > 0 && weight_bytes(*model) <= kMostFixedBytes) {
      for (const int64_t rows : kFixedRows) {
        variants.emplace_back(rows, fix_shapes(model, signature, rows));
      }
    }
    variants.emplace_back(0, model);
    for_each(pool_, options.num_streams, [&](int64_t i) {
      for (const auto& [rows, variant] : variants) {
        Compiled::Executable made = compiled.prepare(variant, rows, ports, spec.precision);
        // Where the output stays open all the same, the graph for any size serves.
        if (rows > 0 && made.output_values == nullptr) continue;
        compiled.streams[static_cast<size_t>(i)].push_back(std::move(made));
      }
    });
    for (Compiled::Stream& stream : compiled.streams) compiled.idle.push_back(&stream);
  } catch (const RecengineError&) {
    throw;
  } catch (const std::exception& error) {
    throw CompileError(compiled.what + ": OpenVINO: " + printable(error.what()));
  }
}

DenseGraph::~DenseGraph() = default;

void DenseGraph::run(const std::vector<GraphArgument>& inputs, Matrix<float> output) const {
  try {
    compiled_->run(pool_, inputs, output);
  } catch (const RecengineError&) {
    throw;
  } catch (const std::exception& error) {
    throw RecengineError(compiled_->what + ": OpenVINO: " + printable(error.what()));
  }
}

}  // namespace recengine
