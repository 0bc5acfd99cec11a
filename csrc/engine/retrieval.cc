#include "engine/retrieval.h"

#include <vector>

namespace recengine {

// What a thread keeps between calls.
struct Retrieval::Scratch {
  KnownUsers known;
  std::vector<float> vectors;  // [known, dim]
};

Retrieval::Retrieval(const Manifest& manifest, const Assets& assets, BundleFiles& files,
                     ThreadPool& pool, const EngineOptions& options)
    : features_(manifest, manifest.retrieval->bags, assets) {
  const RetrievalSpec& spec = *manifest.retrieval;
  if (manifest.holds(StageKind::kLookup)) lookup_.emplace("retrieval", manifest, spec.bags, assets);
  if (!manifest.stage) {
    const GraphSignature signature = {lookup_->graph_inputs(),
                                      {"user", {kDynamicDim, spec.index.dim}}};
    graph_.emplace(spec.graph, manifest.graphs.at(spec.graph), signature, files, options);
  }
  if (manifest.holds(StageKind::kTopK)) search_.emplace(manifest, assets, files, pool);
}

void Retrieval::run(const Context& context, const UserBatch& users, Recommendations out) const {
  static thread_local Scratch scratch;
  lookup_->run(context, users, scratch.known);
  scratch.vectors.resize(static_cast<size_t>(scratch.known.size() * search_->dim()));
  const Matrix<float> vectors(scratch.vectors.data(), scratch.known.size(), search_->dim());
  if (vectors.rows > 0) graph_->run(lookup_->graph_arguments(scratch.known), vectors);
  search_->run(context, users, scratch.known.users, vectors, out);
}

void Retrieval::look_up(const Context& context, const UserBatch& users,
                        Matrix<float> sparse) const {
  lookup_->run(context, users, sparse);
}

void Retrieval::search(const Context& context, const UserBatch& users, Matrix<const float> vectors,
                       Recommendations out) const {
  static thread_local std::vector<int64_t> known;
  static thread_local std::vector<float> selected;
  features_.find_known(users, known);
  search_->run(context, users, known, select_rows(vectors, known, selected), out);
}

}  // namespace recengine
