// Every file that a peer wrote, opened without being told its kind: the codes and reconstructions are the peer's.
#include <sae/files/npy.hpp>
#include <sae/formats/load.hpp>

#include <algorithm>
#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "catch_compat.hpp"
#include "peer_codes.hpp"
#include "temp_folder.hpp"

using Catch::Matchers::ContainsSubstring;
namespace fs = std::filesystem;

namespace {

using sae::Dynamic, sae::Index;

using sae_test::peers, sae_test::rows_of, sae_test::require_close;

void require_like(const sae::AnySae& sae, const fs::path& folder, const std::string& variant = "") {
  const auto x = rows_of(folder / "x.npy");
  require_close(sae.encode(x).dense(), rows_of(folder / ("codes" + variant + ".npy")), 1e-5, true);
  require_close(sae.reconstruct(x), rows_of(folder / ("recon" + variant + ".npy")), 1e-5, false);
}

const char* const dl_hook = "blocks.0.hook_resid_post";
struct Peer {
  const char* folder;
  const char* layout;
  const char* architecture;
  const char* hook = "";
  int warnings = 0;
};

}  // namespace

TEST_CASE("load opens what peers wrote, of any layout, and computes what they compute", "[formats][load]") {
  const Peer peer = GENERATE(
      Peer{"dl_autoencoder", "dictionary_learning", "standard", dl_hook},
      Peer{"dl_autoencoder_new", "dictionary_learning", "standard", dl_hook},
      Peer{"dl_gated", "dictionary_learning", "gated", dl_hook},
      Peer{"dl_jumprelu", "dictionary_learning", "jumprelu", dl_hook}, Peer{"dl_topk", "dictionary_learning", "topk", dl_hook},
      Peer{"dl_topk_unset_threshold", "dictionary_learning", "topk", dl_hook},
      Peer{"dl_batch_topk", "dictionary_learning", "jumprelu", dl_hook},
      Peer{"dl_batch_topk_trained", "dictionary_learning", "jumprelu", dl_hook},
      Peer{"dl_matryoshka", "dictionary_learning", "jumprelu", dl_hook},
      Peer{"dl_transposed_strides", "dictionary_learning", "topk", dl_hook},
      Peer{"dl_backup", "dictionary_learning", "jumprelu", dl_hook, 1}, Peer{"openai_topk", "openai", "topk"},
      Peer{"openai_topk/autoencoder_own_keys.pt", "openai", "topk"}, Peer{"openai_relu", "openai", "standard"},
      Peer{"gemma_scope_1_stored", "gemma_scope", "jumprelu"}, Peer{"sparsify_topk", "sparsify", "topk"},
      Peer{"sparsify_topk_bf16", "sparsify", "topk"}, Peer{"sparsify_groupmax", "sparsify", "groupmax"},
      Peer{"sparsify_multi_topk", "sparsify", "topk"}, Peer{"sparsify_old_config", "sparsify", "topk"},
      Peer{"sparsify_skip_sae", "sparsify", "topk_skip_transcoder"},
      Peer{"sparsify_transcode_skip", "sparsify", "topk_skip_transcoder"},
      Peer{"gemma_scope_2", "gemma_scope_2", "jumprelu", "blocks.12.hook_resid_post"},
      Peer{"gemma_scope_2_transcoder_affine", "gemma_scope_2", "jumprelu_skip_transcoder", "blocks.12.ln2.hook_normalized"},
      Peer{"llama_scope", "llama_scope", "jumprelu", "blocks.0.hook_resid_post", 1},
      Peer{"llama_scope_transcoder", "llama_scope", "jumprelu_transcoder", "blocks.0.ln2.hook_normalized", 1},
      Peer{"llamascopium_jumprelu_dataset_wise", "llamascopium", "jumprelu", "blocks.0.hook_resid_post"},
      Peer{"llamascopium_jumprelu_inference", "llamascopium", "jumprelu", "blocks.0.hook_resid_post"},
      Peer{"llamascopium_relu_glu_no_bias", "llamascopium", "glu_standard", "blocks.0.hook_resid_post"},
      Peer{"llamascopium_topk", "llamascopium", "topk", "blocks.0.hook_resid_post"},
      Peer{"saelens_pre6_standard", "saelens", "standard", "blocks.0.hook_resid_pre"},
      Peer{"saelens_pre6_topk", "saelens", "topk", "blocks.0.hook_resid_pre"},
      Peer{"saelens_checkpoint_topk", "saelens", "topk", "blocks.0.hook_resid_post"},
      Peer{"saelens_checkpoint_jumprelu", "saelens", "jumprelu", "blocks.0.hook_resid_post"});
  CAPTURE(peer.folder);
  const sae::AnySae sae = sae::load(peers / peer.folder);
  const fs::path folder = fs::is_directory(peers / peer.folder) ? peers / peer.folder : (peers / peer.folder).parent_path();
  require_like(sae, folder);
  CHECK(sae.layout == peer.layout);
  CHECK(sae.architecture() == peer.architecture);
  CHECK(sae.metadata.hook_name == peer.hook);
  CAPTURE(sae.warnings);
  CHECK(static_cast<int>(sae.warnings.size()) == peer.warnings);
  // A copy of it, and what was saved and loaded again, are the same SAE.
  TempFolder temp;
  sae::save_saelens(sae, temp / "sae");
  const auto x = rows_of(folder / "x.npy");
  const sae::AnySae back = sae::load(temp / "sae");
  CHECK(back.architecture() == sae.architecture());
  if (back.architecture() != "topk") {
    CHECK(back.encode(x).dense() == sae.encode(x).dense());
    CHECK(back.reconstruct(x) == sae.reconstruct(x));
  } else {  // ranks by decoder norms are folded
    require_close(back.reconstruct(x), rows_of(folder / "recon.npy"), 1e-5, false);
  }
}

TEST_CASE("load: a training that ranks whole batches is used by its running threshold, as SAELens saves it",
          "[formats][load]") {
  for (const std::string name : {"saelens_checkpoint_batchtopk", "saelens_checkpoint_matryoshka"}) {
    CAPTURE(name);
    const sae::AnySae sae = sae::load(peers / name);
    require_like(sae, peers / name, "_inference");
    CHECK(sae.architecture() == "jumprelu");
    REQUIRE(sae.warnings.size() == 1);
    CHECK_THAT(sae.warnings[0], ContainsSubstring("by its running threshold"));
  }
}
