#include "engine/version.h"

#include "engine/mapped_file.h"
#include "recengine/error.h"

namespace recengine {
namespace {

constexpr char kManifestName[] = "manifest.json";

Schema make_schema(const Manifest& manifest, const Assets& assets) {
  Schema schema;
  schema.name = manifest.name;
  for (const FeatureSpec& feature : manifest.features) {
    schema.features.push_back({feature.name, feature.max_length, feature.hashed});
    if (feature.vocabulary == manifest.item_vocabulary) schema.hashed_items |= feature.hashed;
  }
  schema.dense_features = manifest.dense_features;
  schema.dense_defaults = manifest.dense_means;
  schema.num_items = assets.vocabulary(manifest.item_vocabulary).size();
  // Without retrieval the caller brings the candidates, at most the whole catalog.
  schema.max_candidates = schema.num_items;
  if (manifest.retrieval) {
    schema.num_candidates = manifest.retrieval->num_candidates;
    schema.max_candidates = manifest.retrieval->max_candidates;
  }
  schema.k = manifest.ranking ? manifest.ranking->k : schema.num_candidates;
  return schema;
}

}  // namespace

Version::Version(const std::string& directory, ThreadPool& pool, Residence resident)
    : manifest(read_manifest(MappedFile(directory, kManifestName))),
      files(directory, manifest, pool, resident),
      assets(manifest, files, pool),
      schema(make_schema(manifest, assets)) {}

bool Version::has(Stage stage) const {
  const bool whole = !manifest.stage;
  switch (stage) {
    case Stage::kRetrievalLookup:
      return manifest.retrieval && manifest.holds(StageKind::kLookup);
    case Stage::kTopK:
      return manifest.retrieval && manifest.holds(StageKind::kTopK);
    case Stage::kRetrieval:
      return manifest.retrieval && whole;
    case Stage::kRankingLookup:
      return manifest.ranking && manifest.holds(StageKind::kLookup);
    case Stage::kOrder:
      return manifest.ranking && manifest.holds(StageKind::kOrder);
    case Stage::kRanking:
      return manifest.ranking && whole;
  }
  return false;
}

void require_stage(const Engine& engine, Stage stage) {
  if (!engine.has(stage)) {
    throw InputError(std::string("[engine] this version has no ") + name_of(stage) + " stage");
  }
}

}  // namespace recengine
