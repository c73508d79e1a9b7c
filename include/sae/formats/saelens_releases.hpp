#pragma once
#include <sae/files/yaml.hpp>
#include <sae/formats/hub.hpp>
#include <sae/formats/saelens.hpp>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

// The names that SAELens gives to published SAEs, a release and an id: "gemma-scope-2b-pt-res-canonical/layer_12/width_16k/canonical".
// Where one is on the hub follows from rules, which are written here, for every release of SAELens 6.54; later releases are looked up
// in the user's own copy of SAELens' table. Source: SAELens 6.54, pretrained_saes.yaml, loading/pretrained_sae_loaders.py;
// scripts/names.py (scripts/interop.sh) compares every name there with what is found here.
namespace sae::inline SAE_ABI {

/// A SAE of one of SAELens' releases.
struct SaelensRelease {
  std::string repository = {};          ///< of the hub: "google/gemma-scope-2b-pt-res"
  std::vector<std::string> files = {};  ///< in it, the weights first, that it takes to open the SAE
  /// What is to be downloaded where settings may lie beside them that not every repository has; empty: the files.
  std::vector<std::string> include = {};
  SaelensOverrides overrides = {};

  /// "huggingface-cli download google/gemma-scope-2b-pt-res layer_12/width_16k/average_l0_82/params.npz"
  std::string download() const {
    std::string out = detail::concat("huggingface-cli download ", repository, include.empty() ? "" : " --include");
    for (const std::string& pattern : include) out += detail::concat(" \"", pattern, "\"");
    if (include.empty())
      for (const std::string& file : files) out += " " + file;
    return out;
  }
};

namespace detail {

/// How SAELens reads a release ("conversion_func"), and what files it takes: @ is the path of the SAE in the repository.
struct SaelensLoader {
  std::string_view name, files, include = {};
};
inline constexpr SaelensLoader saelens_loaders[] = {
    {"sae_lens", "@/sae_weights.safetensors @/cfg.json"},
    {"gemma_2", "@/params.npz"},
    {"gemma_2_transcoder", "@/params.npz"},
    {"gemma_3", "@/params.safetensors", "@/*"},
    {"llama_scope", "@/checkpoints/final.safetensors @/hyperparams.json"},
    {"llama_scope_r1_distill", "@/sae_weights.safetensors @/config.json"},
    {"dictionary_learning_1", "@/ae.pt @/config.json"},
    {"sparsify", "@/sae.safetensors @/cfg.json"},
    {"temporal", "@/latest_ckpt.safetensors @/conf.yaml"},
    {"connor_rob_hook_z", "@"},
    {"deepseek_r1", "@"},
    {"goodfire", "@"},
    {"mwhanna_transcoder", "@", "@ *.yaml"},
    {"qwen_scope", "@"},
    {"mntss_clt_layer_transcoder", "W_enc_@.safetensors W_dec_@.safetensors config.yaml"},
};

/// From names to places. In `release` and `id` a * stands for letters, digits and dots, ** for anything; $1 is what the first of them
/// stood for, release and id counted through.
struct SaelensRule {
  std::string_view release, repository, loader, id, path;
  double norm_scaling_factor = 0;
  std::string_view normalize_activations = {};
};
inline constexpr SaelensRule saelens_rules[] = {
    // Gemma Scope 2
    {"gemma-scope-2-*-*-transcoders-all", "google/gemma-scope-2-$1-$2", "gemma_3", "**", "transcoder_all/$3"},
    {"gemma-scope-2-*-*-transcoders", "google/gemma-scope-2-$1-$2", "gemma_3", "**", "$3"},
    {"gemma-scope-2-*-*-res-all", "google/gemma-scope-2-$1-$2", "gemma_3", "**", "resid_post_all/$3"},
    {"gemma-scope-2-*-*-res", "google/gemma-scope-2-$1-$2", "gemma_3", "**", "resid_post/$3"},
    {"gemma-scope-2-*-*-mlp-all", "google/gemma-scope-2-$1-$2", "gemma_3", "**", "mlp_out_all/$3"},
    {"gemma-scope-2-*-*-mlp", "google/gemma-scope-2-$1-$2", "gemma_3", "**", "mlp_out/$3"},
    {"gemma-scope-2-*-*-att-all", "google/gemma-scope-2-$1-$2", "gemma_3", "**", "attn_out_all/$3"},
    {"gemma-scope-2-*-*-att", "google/gemma-scope-2-$1-$2", "gemma_3", "**", "attn_out/$3"},
    // Gemma Scope 1; $L0 is that of `canonical_l0`
    {"gemma-scope-*-*-*-canonical", "google/gemma-scope-$1-$2-$3", "gemma_2", "layer_*/width_*/canonical",
     "layer_$4/width_$5/average_l0_$L0"},
    {"gemma-scope-*-*-transcoders", "google/gemma-scope-$1-$2-transcoders", "gemma_2_transcoder", "**", "$3"},
    {"gemma-scope-*-*-*", "google/gemma-scope-$1-$2-$3", "gemma_2", "**", "$4"},
    // Llama Scope
    {"llama_scope_lxa_*x", "fnlp/Llama3_1-8B-Base-LXA-$1x", "llama_scope", "l*a_*x", "Llama3_1-8B-Base-L$2A-$3x"},
    {"llama_scope_lxm_*x", "fnlp/Llama3_1-8B-Base-LXM-$1x", "llama_scope", "l*m_*x", "Llama3_1-8B-Base-L$2M-$3x"},
    {"llama_scope_lxr_*x", "fnlp/Llama3_1-8B-Base-LXR-$1x", "llama_scope", "l*r_*x", "Llama3_1-8B-Base-L$2R-$3x"},
    {"llama_scope_r1_distill", "fnlp/Llama-Scope-R1-Distill", "llama_scope_r1_distill", "l*r_800m_slimpajama",
     "800M-Slimpajama-0-OpenR1-Math-220k/L$1R"},
    {"llama_scope_r1_distill", "fnlp/Llama-Scope-R1-Distill", "llama_scope_r1_distill", "l*r_400m_slimpajama_400m_openr1_math",
     "400M-Slimpajama-400M-OpenR1-Math-220k/L$1R"},
    {"llama_scope_r1_distill", "fnlp/Llama-Scope-R1-Distill", "llama_scope_r1_distill", "l*r_800m_openr1_math",
     "0-Slimpajama-800M-OpenR1-Math-220k/L$1R"},
    // SAEBench and others by dictionary_learning
    {"sae_bench_gemma-2-2b_*_width-*_date-*", "canrager/saebench_gemma-2-2b_width-$2_date-$3", "dictionary_learning_1",
     "blocks.*.hook_resid_post__trainer_*_step_*",
     "gemma-2-2b_$1_width-$2_date-$3/resid_post_layer_$4_checkpoints/trainer_$5_step_$6"},
    {"sae_bench_gemma-2-2b_*_width-*_date-*", "canrager/saebench_gemma-2-2b_width-$2_date-$3", "dictionary_learning_1",
     "blocks.*.hook_resid_post__trainer_*", "gemma-2-2b_$1_width-$2_date-$3/resid_post_layer_$4/trainer_$5"},
    {"sae_bench_pythia70m_sweep_*_ctx128_*", "canrager/lm_sae", "dictionary_learning_1", "blocks.*.hook_resid_post__trainer_*",
     "pythia70m_sweep_$1_ctx128_$2/resid_post_layer_$3/trainer_$4"},
    {"saebench_gemma-2-2b_width-2pow12_date-0108", "adamkarvonen/saebench_gemma-2-2b_width-2pow12_date-0108",
     "dictionary_learning_1", "blocks.*.hook_resid_post__trainer_*",
     "MatryoshkaBatchTopK_gemma-2-2b__0108/resid_post_layer_$1/trainer_$2"},
    {"saebench_gemma-2-2b_width-*_date-0107", "canrager/saebench_gemma-2-2b_width-$1_date-0107", "dictionary_learning_1",
     "blocks.*.hook_resid_post__trainer_*",
     "gemma-2-2b_matryoshka_batch_top_k_width-$1_date-0107/resid_post_layer_$2/trainer_$3"},
    {"llama-3.1-8b-instruct-andyrdt", "andyrdt/saes-llama-3.1-8b-instruct", "dictionary_learning_1",
     "resid_post_layer_*_trainer_*", "resid_post_layer_$1/trainer_$2"},
    {"qwen2.5-7b-instruct-andyrdt", "andyrdt/saes-qwen2.5-7b-instruct", "dictionary_learning_1", "resid_post_layer_*_trainer_*",
     "resid_post_layer_$1/trainer_$2"},
    {"gpt-oss-20b-andyrdt", "andyrdt/saes-gpt-oss-20b", "dictionary_learning_1", "resid_post_layer_*_trainer_*",
     "resid_post_layer_$1/trainer_$2"},
    // GPT-2
    {"gpt2-small-attn-out-v5-*", "jbloom/GPT2-Small-OAI-v5-$1-attn-out-SAEs", "sae_lens", "blocks.*.hook_attn_out",
     "v5_$1_layer_$2"},
    {"gpt2-small-mlp-out-v5-*", "jbloom/GPT2-Small-OAI-v5-$1-mlp-out-SAEs", "sae_lens", "blocks.*.hook_mlp_out",
     "v5_$1_layer_$2"},
    {"gpt2-small-resid-mid-v5-*", "jbloom/GPT2-Small-OAI-v5-$1-resid-mid-SAEs", "sae_lens", "blocks.*.hook_resid_mid",
     "v5_$1_layer_$2"},
    {"gpt2-small-resid-post-v5-32k", "jbloom/GPT2-Small-OAI-v5-32k-resid-post-SAEs", "sae_lens", "blocks.*.hook_resid_post",
     "v5_32k_layer_$1.pt"},
    {"gpt2-small-resid-post-v5-128k", "jbloom/GPT2-Small-OAI-v5-128k-resid-post-SAEs", "sae_lens", "blocks.*.hook_resid_post",
     "v5_128k_layer_$1"},
    {"gpt2-small-res-jb", "jbloom/GPT2-Small-SAEs-Reformatted", "sae_lens", "**", "$1"},
    {"gpt2-small-res-jb-feature-splitting", "jbloom/GPT2-Small-Feature-Splitting-Experiment-Layer-8", "sae_lens", "**", "$1"},
    {"gpt2-small-res_*-ajt", "neuronpedia/gpt2-small__res_$1-ajt", "sae_lens", "blocks.*.hook_resid_pre", "$2-res_$1-ajt"},
    {"gpt2-small-mlp-tm", "tommmcgrath/gpt2-small-mlp-out-saes", "sae_lens", "blocks.0.hook_mlp_out",
     "sae_group_gpt2_blocks.0.hook_mlp_out_24576:v1", 1.049317316132615},
    {"gpt2-small-mlp-tm", "tommmcgrath/gpt2-small-mlp-out-saes", "sae_lens", "blocks.1.hook_mlp_out",
     "sae_group_gpt2_blocks.1.hook_mlp_out_24576:v0", 2.3693984005104283},
    {"gpt2-small-mlp-tm", "tommmcgrath/gpt2-small-mlp-out-saes", "sae_lens", "blocks.2.hook_mlp_out",
     "sae_group_gpt2_blocks.2.hook_mlp_out_24576:v0", 1.6411934982190302},
    {"gpt2-small-mlp-tm", "tommmcgrath/gpt2-small-mlp-out-saes", "sae_lens", "blocks.3.hook_mlp_out",
     "sae_group_gpt2_blocks.3.hook_mlp_out_24576:v0", 1.8958522157897557},
    {"gpt2-small-mlp-tm", "tommmcgrath/gpt2-small-mlp-out-saes", "sae_lens", "blocks.4.hook_mlp_out",
     "sae_group_gpt2_blocks.4.hook_mlp_out_24576:v0", 1.81673478700627},
    {"gpt2-small-mlp-tm", "tommmcgrath/gpt2-small-mlp-out-saes", "sae_lens", "blocks.5.hook_mlp_out",
     "sae_group_gpt2_blocks.5.hook_mlp_out_24576:v0", 1.550234472245924},
    {"gpt2-small-mlp-tm", "tommmcgrath/gpt2-small-mlp-out-saes", "sae_lens", "blocks.6.hook_mlp_out",
     "sae_group_gpt2_blocks.6.hook_mlp_out_24576:v0", 1.3237742807210804},
    {"gpt2-small-mlp-tm", "tommmcgrath/gpt2-small-mlp-out-saes", "sae_lens", "blocks.7.hook_mlp_out",
     "sae_group_gpt2_blocks.7.hook_mlp_out_24576:v0", 1.1042905114723296},
    {"gpt2-small-mlp-tm", "tommmcgrath/gpt2-small-mlp-out-saes", "sae_lens", "blocks.8.hook_mlp_out",
     "sae_group_gpt2_blocks.8.hook_mlp_out_24576:v1", 0.9123762783479742},
    {"gpt2-small-mlp-tm", "tommmcgrath/gpt2-small-mlp-out-saes", "sae_lens", "blocks.9.hook_mlp_out",
     "sae_group_gpt2_blocks.9.hook_mlp_out_24576:v0", 0.6955335635232373},
    {"gpt2-small-mlp-tm", "tommmcgrath/gpt2-small-mlp-out-saes", "sae_lens", "blocks.10.hook_mlp_out",
     "sae_group_gpt2_blocks.10.hook_mlp_out_24576:v0", 0.3619728926727644},
    {"gpt2-small-mlp-tm", "tommmcgrath/gpt2-small-mlp-out-saes", "sae_lens", "blocks.11.hook_mlp_out",
     "sae_group_gpt2_blocks.11.hook_mlp_out_24576:v2", 0.2851548652550073},
    {"gpt2-small-hook-z-kk", "ckkissane/attn-saes-gpt2-small-all-layers", "connor_rob_hook_z", "blocks.0.hook_z",
     "gpt2-small_L0_Hcat_z_lr1.20e-03_l11.80e+00_ds24576_bs4096_dc1.00e-06_rsanthropic_rie25000_nr4_v9.pt"},
    {"gpt2-small-hook-z-kk", "ckkissane/attn-saes-gpt2-small-all-layers", "connor_rob_hook_z", "blocks.1.hook_z",
     "gpt2-small_L1_Hcat_z_lr1.20e-03_l18.00e-01_ds24576_bs4096_dc1.00e-06_rsanthropic_rie25000_nr4_v5.pt"},
    {"gpt2-small-hook-z-kk", "ckkissane/attn-saes-gpt2-small-all-layers", "connor_rob_hook_z", "blocks.2.hook_z",
     "gpt2-small_L2_Hcat_z_lr1.20e-03_l11.00e+00_ds24576_bs4096_dc1.00e-06_rsanthropic_rie25000_nr4_v4.pt"},
    {"gpt2-small-hook-z-kk", "ckkissane/attn-saes-gpt2-small-all-layers", "connor_rob_hook_z", "blocks.3.hook_z",
     "gpt2-small_L3_Hcat_z_lr1.20e-03_l19.00e-01_ds24576_bs4096_dc1.00e-06_rsanthropic_rie25000_nr4_v9.pt"},
    {"gpt2-small-hook-z-kk", "ckkissane/attn-saes-gpt2-small-all-layers", "connor_rob_hook_z", "blocks.4.hook_z",
     "gpt2-small_L4_Hcat_z_lr1.20e-03_l11.10e+00_ds24576_bs4096_dc1.00e-06_rsanthropic_rie25000_nr4_v7.pt"},
    {"gpt2-small-hook-z-kk", "ckkissane/attn-saes-gpt2-small-all-layers", "connor_rob_hook_z", "blocks.5.hook_z",
     "gpt2-small_L5_Hcat_z_lr1.20e-03_l11.00e+00_ds49152_bs4096_dc1.00e-06_rsanthropic_rie25000_nr4_v9.pt"},
    {"gpt2-small-hook-z-kk", "ckkissane/attn-saes-gpt2-small-all-layers", "connor_rob_hook_z", "blocks.6.hook_z",
     "gpt2-small_L6_Hcat_z_lr1.20e-03_l11.10e+00_ds24576_bs4096_dc1.00e-06_rsanthropic_rie25000_nr4_v9.pt"},
    {"gpt2-small-hook-z-kk", "ckkissane/attn-saes-gpt2-small-all-layers", "connor_rob_hook_z", "blocks.7.hook_z",
     "gpt2-small_L7_Hcat_z_lr1.20e-03_l11.10e+00_ds49152_bs4096_dc1.00e-06_rsanthropic_rie25000_nr4_v9.pt"},
    {"gpt2-small-hook-z-kk", "ckkissane/attn-saes-gpt2-small-all-layers", "connor_rob_hook_z", "blocks.8.hook_z",
     "gpt2-small_L8_Hcat_z_lr1.20e-03_l11.30e+00_ds24576_bs4096_dc1.00e-05_rsanthropic_rie25000_nr4_v6.pt"},
    {"gpt2-small-hook-z-kk", "ckkissane/attn-saes-gpt2-small-all-layers", "connor_rob_hook_z", "blocks.9.hook_z",
     "gpt2-small_L9_Hcat_z_lr1.20e-03_l11.20e+00_ds24576_bs4096_dc1.00e-06_rsanthropic_rie25000_nr4_v9.pt"},
    {"gpt2-small-hook-z-kk", "ckkissane/attn-saes-gpt2-small-all-layers", "connor_rob_hook_z", "blocks.10.hook_z",
     "gpt2-small_L10_Hcat_z_lr1.20e-03_l11.30e+00_ds24576_bs4096_dc1.00e-05_rsanthropic_rie25000_nr4_v9.pt"},
    {"gpt2-small-hook-z-kk", "ckkissane/attn-saes-gpt2-small-all-layers", "connor_rob_hook_z", "blocks.11.hook_z",
     "gpt2-small_L11_Hcat_z_lr1.20e-03_l13.00e+00_ds24576_bs4096_dc3.16e-06_rsanthropic_rie25000_nr4_v9.pt"},
    // Pythia, Gemma, Llama and Mistral in SAELens' own layout
    {"pythia-70m-deduped-att-sm", "ctigges/pythia-70m-deduped__att-sm_processed", "sae_lens", "blocks.*.hook_attn_out",
     "$1-att-sm"},
    {"pythia-70m-deduped-mlp-sm", "ctigges/pythia-70m-deduped__mlp-sm_processed", "sae_lens", "blocks.*.hook_mlp_out",
     "$1-mlp-sm"},
    {"pythia-70m-deduped-res-sm", "ctigges/pythia-70m-deduped__res-sm_processed", "sae_lens", "blocks.0.hook_resid_pre",
     "e-res-sm"},
    {"pythia-70m-deduped-res-sm", "ctigges/pythia-70m-deduped__res-sm_processed", "sae_lens", "blocks.*.hook_resid_post",
     "$1-res-sm"},
    {"gemma-2b-it-res-jb", "jbloom/Gemma-2b-IT-Residual-Stream-SAEs", "sae_lens", "blocks.*.hook_resid_post",
     "gemma_2b_it_blocks.$1.hook_resid_post_16384"},
    {"gemma-2b-res-jb", "jbloom/Gemma-2b-Residual-Stream-SAEs", "sae_lens", "blocks.0.hook_resid_post",
     "gemma_2b_blocks.0.hook_resid_post_16384_anthropic"},
    {"gemma-2b-res-jb", "jbloom/Gemma-2b-Residual-Stream-SAEs", "sae_lens", "blocks.6.hook_resid_post",
     "gemma_2b_blocks.6.hook_resid_post_16384_anthropic_fast_lr"},
    {"gemma-2b-res-jb", "jbloom/Gemma-2b-Residual-Stream-SAEs", "sae_lens", "blocks.10.hook_resid_post",
     "gemma_2b_blocks.10.hook_resid_post_16384"},
    {"gemma-2b-res-jb", "jbloom/Gemma-2b-Residual-Stream-SAEs", "sae_lens", "blocks.12.hook_resid_post",
     "gemma_2b_blocks.12.hook_resid_post_16384", 0.21381938399317255},
    {"gemma-2b-res-jb", "jbloom/Gemma-2b-Residual-Stream-SAEs", "sae_lens", "blocks.17.hook_resid_post",
     "gemma_2b_blocks.17.hook_resid_post_16384"},
    {"gemma-2-2b-res-matryoshka-dc", "chanind/gemma-2-2b-batch-topk-matryoshka-saes-w-32k-l0-40", "sae_lens", "**",
     "standard/$1"},
    {"gemma-2-2b-res-snap-matryoshka-dc", "chanind/gemma-2-2b-batch-topk-matryoshka-saes-w-32k-l0-40", "sae_lens", "**",
     "snap/$1"},
    {"gemma-2-9b-res-matryoshka-dc", "chanind/gemma-2-9b-batch-topk-matryoshka-saes-w-32k-l0-60", "sae_lens", "**", "$1"},
    {"gemma-3-1b-res-matryoshka-dc", "chanind/gemma-3-1b-batch-topk-matryoshka-saes-w-32k-l0-40", "sae_lens", "**", "$1"},
    {"llama-3-8b-it-res-jh", "Juliushanhanhan/llama-3-8b-it-res", "sae_lens", "**", "$1"},
    {"mistral-7b-res-wg", "JoshEngels/Mistral-7B-Residual-Stream-SAEs", "sae_lens", "blocks.*.hook_resid_pre",
     "mistral_7b_layer_$1", 0, "constant_norm_rescale"},
    // Files that are SAEs by themselves
    {"mwhanna-qwen3-4b-transcoders", "mwhanna/qwen3-4b-transcoders", "mwhanna_transcoder", "layer_*", "layer_$1.safetensors"},
    {"mwhanna-qwen3-8b-transcoders", "mwhanna/qwen3-8b-transcoders", "mwhanna_transcoder", "layer_*", "layer_$1.safetensors"},
    {"mwhanna-qwen3-14b-transcoders", "mwhanna/qwen3-14b-transcoders", "mwhanna_transcoder", "layer_*", "layer_$1.safetensors"},
    {"mwhanna-qwen3-14b-transcoders-lowl0", "mwhanna/qwen3-14b-transcoders-lowl0", "mwhanna_transcoder", "layer_*",
     "layer_$1.safetensors"},
    {"mwhanna-qwen3-1.7b-transcoders-lowl0", "mwhanna/qwen3-1.7b-transcoders-lowl0", "mwhanna_transcoder", "layer_*",
     "layer_$1.safetensors"},
    {"mwhanna-qwen3-0.6b-transcoders-lowl0", "mwhanna/qwen3-0.6b-transcoders-lowl0", "mwhanna_transcoder", "layer_*",
     "layer_$1.safetensors"},
    {"mntss-gemma-2-2b-2.5m-clt-as-per-layer", "mntss/clt-gemma-2-2b-2.5M", "mntss_clt_layer_transcoder", "layer_*", "$1"},
    {"qwen-scope-3-1.7b-base-w32k-l50", "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50", "qwen_scope", "layer*", "layer$1.sae.pt"},
    {"qwen-scope-3-1.7b-base-w32k-l100", "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_100", "qwen_scope", "layer*", "layer$1.sae.pt"},
    {"qwen-scope-3-8b-base-w64k-l50", "Qwen/SAE-Res-Qwen3-8B-Base-W64K-L0_50", "qwen_scope", "layer*", "layer$1.sae.pt"},
    {"qwen-scope-3-8b-base-w64k-l100", "Qwen/SAE-Res-Qwen3-8B-Base-W64K-L0_100", "qwen_scope", "layer*", "layer$1.sae.pt"},
    {"qwen-scope-3-30b-a3b-base-w32k-l50", "Qwen/SAE-Res-Qwen3-30B-A3B-Base-W32K-L0_50", "qwen_scope", "layer*",
     "layer$1.sae.pt"},
    {"qwen-scope-3-30b-a3b-base-w128k-l100", "Qwen/SAE-Res-Qwen3-30B-A3B-Base-W128K-L0_100", "qwen_scope", "layer*",
     "layer$1.sae.pt"},
    {"qwen-scope-3.5-2b-base-w32k-l50", "Qwen/SAE-Res-Qwen3.5-2B-Base-W32K-L0_50", "qwen_scope", "layer*", "layer$1.sae.pt"},
    {"qwen-scope-3.5-2b-base-w32k-l100", "Qwen/SAE-Res-Qwen3.5-2B-Base-W32K-L0_100", "qwen_scope", "layer*", "layer$1.sae.pt"},
    {"qwen-scope-3.5-9b-base-w64k-l50", "Qwen/SAE-Res-Qwen3.5-9B-Base-W64K-L0_50", "qwen_scope", "layer*", "layer$1.sae.pt"},
    {"qwen-scope-3.5-9b-base-w64k-l100", "Qwen/SAE-Res-Qwen3.5-9B-Base-W64K-L0_100", "qwen_scope", "layer*", "layer$1.sae.pt"},
    {"qwen-scope-3.5-27b-w80k-l50", "Qwen/SAE-Res-Qwen3.5-27B-W80K-L0_50", "qwen_scope", "layer*", "layer$1.sae.pt"},
    {"qwen-scope-3.5-27b-w80k-l100", "Qwen/SAE-Res-Qwen3.5-27B-W80K-L0_100", "qwen_scope", "layer*", "layer$1.sae.pt"},
    {"qwen-scope-3.5-35b-a3b-base-w32k-l50", "Qwen/SAE-Res-Qwen3.5-35B-A3B-Base-W32K-L0_50", "qwen_scope", "layer*",
     "layer$1.sae.pt"},
    {"qwen-scope-3.5-35b-a3b-base-w128k-l100", "Qwen/SAE-Res-Qwen3.5-35B-A3B-Base-W128K-L0_100", "qwen_scope", "layer*",
     "layer$1.sae.pt"},
    {"goodfire-llama-3.3-70b-instruct", "Goodfire/Llama-3.3-70B-Instruct-SAE-l50", "goodfire", "layer_50",
     "Llama-3.3-70B-Instruct-SAE-l50.pt"},
    {"goodfire-llama-3.1-8b-instruct", "Goodfire/Llama-3.1-8B-Instruct-SAE-l19", "goodfire", "layer_19",
     "Llama-3.1-8B-Instruct-SAE-l19.pth"},
    {"deepseek-r1-distill-llama-8b-qresearch", "qresearch/DeepSeek-R1-Distill-Llama-8B-SAE-l19", "deepseek_r1",
     "blocks.19.hook_resid_post", "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt"},
    // Temporal SAEs
    {"temporal-sae-gemma-2-2b", "canrager/temporalSAEs", "temporal", "blocks.*.hook_resid_post",
     "gemma-2-2B/layer_$1/temporal"},
    {"temporal-sae-llama-3.1-8b", "canrager/temporalSAEs", "temporal", "blocks.*.hook_resid_post",
     "llama-3.1-8B/layer_$1/temporal"},
};

/// Which SAE of Gemma Scope 1 is the canonical one of its layer and width: mean L0 of layer 0, 1, ..., or "layer:L0" where layers are left
/// out. (Those whose L0 is closest to 100.)
struct CanonicalL0 {
  std::string_view release, width, l0;
};
inline constexpr CanonicalL0 canonical_l0[] = {
    {"gemma-scope-27b-pt-res-canonical", "131k", "10:106 22:82 34:72"},
    {"gemma-scope-2b-pt-att-canonical", "16k",
     "104 79 93 117 116 135 61 99 129 127 70 80 85 92 71 98 71 79 72 122 62 65 106 73 96 77"},
    {"gemma-scope-2b-pt-att-canonical", "65k",
     "75 98 125 83 87 99 112 96 112 107 67 75 79 87 66 90 129 70 123 106 102 118 112 140 77 63"},
    {"gemma-scope-2b-pt-mlp-canonical", "16k",
     "119 105 95 95 85 114 133 60 136 88 110 98 108 112 97 80 72 68 106 109 109 113 121 128 73 126"},
    {"gemma-scope-2b-pt-mlp-canonical", "65k",
     "72 127 134 68 66 86 101 115 110 77 95 88 96 98 89 72 66 136 88 88 88 86 92 102 128 107"},
    {"gemma-scope-2b-pt-res-canonical", "16k",
     "105 102 141 59 124 68 70 69 71 73 77 80 82 84 84 78 78 77 74 73 71 70 72 75 73 116"},
    {"gemma-scope-2b-pt-res-canonical", "1m", "5:114 12:107 19:88"},
    {"gemma-scope-2b-pt-res-canonical", "262k", "12:121"},
    {"gemma-scope-2b-pt-res-canonical", "32k", "12:76"},
    {"gemma-scope-2b-pt-res-canonical", "524k", "12:115"},
    {"gemma-scope-2b-pt-res-canonical", "65k",
     "73 121 77 89 89 105 107 107 111 118 128 70 72 75 73 127 128 125 116 115 114 111 116 123 124 93"},
    {"gemma-scope-9b-it-res-canonical", "16k", "9:88 20:91 31:76"},
    {"gemma-scope-9b-it-res-canonical", "131k", "9:121 20:81 31:109"},
    {"gemma-scope-9b-pt-att-canonical", "16k",
     "61 77 69 102 126 125 108 70 65 71 132 67 68 77 81 79 81 110 80 86 76 86 70 80 79 73 75 136 71 76 73 73 74 78 91 77 69 82 "
     "81 77 91 129"},
    {"gemma-scope-9b-pt-att-canonical", "131k",
     "55 116 135 119 75 78 73 106 98 111 97 104 110 126 131 130 71 90 69 71 125 71 115 66 130 115 120 102 115 128 109 117 117 "
     "128 63 124 105 124 135 120 64 92"},
    {"gemma-scope-9b-pt-mlp-canonical", "16k",
     "50 128 81 126 66 93 96 101 124 83 114 76 96 94 97 107 91 104 89 98 108 88 85 73 73 72 142 126 115 111 116 94 98 107 107 "
     "108 109 119 98 90 74 126"},
    {"gemma-scope-9b-pt-mlp-canonical", "131k",
     "30 106 61 109 84 131 72 75 89 129 83 120 77 75 80 89 81 91 82 85 93 79 77 67 67 65 110 99 91 87 89 77 76 83 82 80 81 90 "
     "79 75 125 99"},
    {"gemma-scope-9b-pt-res-canonical", "16k",
     "129 69 67 90 91 77 93 92 99 100 113 118 130 132 67 131 75 73 71 132 68 129 123 120 114 114 116 118 119 119 120 114 111 "
     "114 114 120 120 124 128 131 125 113"},
    {"gemma-scope-9b-pt-res-canonical", "131k",
     "41 56 70 103 101 94 120 119 72 75 84 88 96 99 105 103 121 117 113 110 114 109 105 101 97 96 97 96 98 97 95 92 88 91 89 "
     "94 93 96 101 99 94 84"},
    {"gemma-scope-9b-pt-res-canonical", "1m", "9:122 20:101 31:77"},
    {"gemma-scope-9b-pt-res-canonical", "32k", "20:57"},
    {"gemma-scope-9b-pt-res-canonical", "524k", "20:48"},
    {"gemma-scope-9b-pt-res-canonical", "65k", "20:55"},
};

/// Whether a text is of a pattern in which * stands for letters, digits and dots and ** for anything, one at least. What they stood for
/// goes behind `found`.
inline bool matches_pattern(std::string_view pattern, std::string_view text, std::vector<std::string_view>& found) {
  const std::size_t star = pattern.find('*');
  if (star == std::string_view::npos) return pattern == text;
  if (!text.starts_with(pattern.substr(0, star))) return false;
  text.remove_prefix(star);
  const bool anything = pattern.substr(star).starts_with("**");
  const auto taken = [&](char c) {
    return anything || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '.';
  };
  const std::string_view rest = pattern.substr(star + (anything ? 2 : 1));
  const std::size_t before = found.size();
  for (std::size_t n = 1; n <= text.size() && taken(text[n - 1]); ++n) {
    found.push_back(text.substr(0, n));
    if (matches_pattern(rest, text.substr(n), found)) return true;
    found.resize(before);
  }
  return false;
}

/// The pattern of a place with what the stars of a rule stood for.
inline std::string fill_pattern(std::string_view pattern, const std::vector<std::string_view>& found) {
  std::string out;
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    if (pattern[i] == '$' && pattern[i + 1] != 'L') {
      out += found[static_cast<std::size_t>(pattern[++i] - '1')];
    } else {
      out += pattern[i];
    }
  }
  return out;
}

/// L0 of the canonical SAE of a release at a layer, empty where there is none.
inline std::string_view find_canonical_l0(std::string_view release, std::string_view width, std::string_view layer) {
  for (const CanonicalL0& canonical : canonical_l0) {
    if (canonical.release != release || canonical.width != width) continue;
    std::string_view rest = canonical.l0;
    for (std::size_t counted = 0; !rest.empty(); ++counted) {
      const std::string_view word = rest.substr(0, rest.find(' '));
      rest.remove_prefix(std::min(word.size() + 1, rest.size()));
      const std::size_t colon = word.find(':');
      if (colon == std::string_view::npos ? std::to_string(counted) == layer : word.substr(0, colon) == layer)
        return word.substr(colon == std::string_view::npos ? 0 : colon + 1);
    }
  }
  return {};
}

/// The words of a text, each with the path of a SAE in the place of @.
inline std::vector<std::string> files_at(std::string_view words, const std::string& path) {
  std::vector<std::string> out;
  while (!words.empty()) {
    std::string word(words.substr(0, words.find(' ')));
    words.remove_prefix(std::min(word.size() + 1, words.size()));
    if (const std::size_t at = word.find('@'); at != std::string::npos) word.replace(at, 1, path);
    out.push_back(std::move(word));
  }
  return out;
}

/// The SAE at a path of a repository, as SAELens' loader of that name reads it.
inline SaelensRelease saelens_release_at(std::string repository, std::string_view name, const std::string& path) {
  SaelensLoader loader{name, "@", "@/*"};  // of a later SAELens
  for (const SaelensLoader& known : saelens_loaders)
    if (known.name == name) loader = known;
  SaelensRelease out;
  out.repository = std::move(repository);
  out.files = files_at(loader.files, path);
  out.include = files_at(loader.include, path);
  return out;
}

/// By the rules above. \throws FileError  the release is known, and has no such id.
inline std::optional<SaelensRelease> saelens_release_by_rule(std::string_view release, std::string_view id) {
  std::vector<std::string_view> found;
  std::string ids;
  for (const SaelensRule& rule : saelens_rules) {
    found.clear();
    if (!matches_pattern(rule.release, release, found)) continue;
    ids += concat(ids.empty() ? "" : " or ", rule.id);
    if (!matches_pattern(rule.id, id, found)) continue;
    std::string path = fill_pattern(rule.path, found);
    if (const std::size_t at = path.find("$L0"); at != std::string::npos) {
      const std::string_view l0 = find_canonical_l0(release, found[4], found[3]);
      if (l0.empty()) break;
      path.replace(at, 3, l0);
    }
    SaelensRelease out = saelens_release_at(fill_pattern(rule.repository, found), rule.loader, path);
    out.overrides = {std::string(rule.normalize_activations), rule.norm_scaling_factor};
    return out;
  }
  if (ids.empty()) return std::nullopt;
  throw_file(concat(release, "/", id), ": SAELens' release ", release, " has no such SAE; its ids are ", ids);
}

/// The user's copy of pretrained_saes.yaml: $SAE_PRETRAINED_SAES, or that of the sae-lens installed in $VIRTUAL_ENV, $CONDA_PREFIX or
/// ~/.local. Empty: there is none.
inline std::filesystem::path saelens_table(bool& named) {
  namespace fs = std::filesystem;
  const auto from = [](const char* name) -> fs::path {
    const char* const value = std::getenv(name);
    return value == nullptr ? "" : value;
  };
  const fs::path own = from("SAE_PRETRAINED_SAES");
  named = !own.empty();
  if (named) return own;
  const fs::path home = from("HOME");
  for (const fs::path& root : {from("VIRTUAL_ENV"), from("CONDA_PREFIX"), home.empty() ? home : home / ".local"}) {
    if (root.empty()) continue;
    std::vector<fs::path> there;
    std::error_code error;
    for (fs::directory_iterator at(root / "lib", error), end; !error && at != end; at.increment(error))
      if (fs::path table = at->path() / "site-packages" / "sae_lens" / "pretrained_saes.yaml";
          fs::is_regular_file(table, error))
        there.push_back(std::move(table));
    if (!there.empty()) return *std::max_element(there.begin(), there.end());
  }
  return {};
}

/// By a table like SAELens' own. \throws FileError  it says what no such table does.
inline std::optional<SaelensRelease> saelens_release_by_table(const nlohmann::json& table, const std::filesystem::path& file,
                                                              std::string_view release, std::string_view id) {
  const nlohmann::json* const found = json_find(table, release, file);
  if (found == nullptr) return std::nullopt;
  const nlohmann::json& saes = json_require(*found, "saes", file);
  if (!saes.is_array()) throw_field(file, concat(release, ": saes"), saes, "a list");
  const auto text = [&](const nlohmann::json& sae, std::string_view name) {  // 0 is one as well
    const nlohmann::json& value = json_require(sae, name, file);
    return value.is_number_integer() ? value.dump() : json_string(sae, name, file);
  };
  for (const nlohmann::json& sae : saes) {
    if (text(sae, "id") != id) continue;
    const std::string repository = json_string(*found, "repo_id", file), path = text(sae, "path");
    if (const auto name = parse_hub_name(repository); !name || !name->path.empty())
      throw_field(file, concat(release, ": repo_id"), repository, "the name of a repository");
    if (!is_hub_path(path)) throw_field(file, concat(release, ": path"), path, "a path in a repository");
    SaelensRelease out = saelens_release_at(repository, json_string_or(*found, "conversion_func", "sae_lens", file), path);
    out.overrides.norm_scaling_factor = json_number_or(sae, "norm_scaling_factor", 0, file, 0);
    if (const nlohmann::json* const overrides = json_find(*found, "config_overrides", file))
      out.overrides.normalize_activations = json_string_or(*overrides, "normalize_activations", "", file);
    return out;
  }
  throw_file(concat(release, "/", id), ": the release ", release, " in ", file.string(), " has no such SAE");
}

}  // namespace detail

/// What one of SAELens' names stands for, "release/id", by the rules of this header; nothing where it begins with no release of theirs.
/// \throws FileError  the release has no such id.
inline std::optional<SaelensRelease> find_saelens_release(std::string_view name) {
  const std::size_t slash = name.find('/');
  if (slash == std::string_view::npos || !detail::is_hub_path(name)) return std::nullopt;
  return detail::saelens_release_by_rule(name.substr(0, slash), name.substr(slash + 1));
}

/// The same by the user's own copy of SAELens' table (pretrained_saes.yaml), for releases later than these rules: the file that
/// SAE_PRETRAINED_SAES names, or that of an installed sae-lens ($VIRTUAL_ENV, $CONDA_PREFIX, ~/.local).
/// \throws FileError  the release has no such id; the file that was named is missing or malformed. One that was not named counts as none then.
inline std::optional<SaelensRelease> find_in_saelens_table(std::string_view name) {
  const std::size_t slash = name.find('/');
  if (slash == std::string_view::npos || !detail::is_hub_path(name)) return std::nullopt;
  bool named = false;
  const std::filesystem::path file = detail::saelens_table(named);
  if (file.empty()) return std::nullopt;
  nlohmann::json table;
  try {
    table = read_yaml(file, std::size_t{64} << 20);
  } catch (const FileError&) {
    if (named) throw;
    return std::nullopt;
  }
  return detail::saelens_release_by_table(table, file, name.substr(0, slash), name.substr(slash + 1));
}

/// Where a SAE that was asked for lies, and what its release says beside its files.
struct FoundSae {
  std::filesystem::path path;
  SaelensOverrides overrides = {};
};

/// A path where something is stays as it is. Else it is taken for one of SAELens' names, or for a name of the Hugging Face hub, and
/// looked for in the hub's cache on this machine. Nothing is downloaded.
/// \throws FileError  it is not there: what to download.
inline FoundSae find_sae(const std::filesystem::path& asked) {
  std::error_code error;
  if (std::filesystem::exists(std::filesystem::symlink_status(asked, error))) return {asked};
  const std::string name = asked.generic_string();
  std::optional<SaelensRelease> release = find_saelens_release(name);
  if (!release) {
    const std::optional<HubName> hub = parse_hub_name(name);
    if (hub && find_in_hub_cache(*hub)) return {resolve_path(asked)};
    release = find_in_saelens_table(name);
  }
  if (!release) return {resolve_path(asked)};
  if (const auto snapshot = find_in_hub_cache(release->repository, release->files))
    return {*snapshot / release->files.front(), std::move(release->overrides)};
  std::string files;
  for (const std::string& file : release->files) files += (files.empty() ? "" : " and ") + file;
  throw_file(name, ": is ", files, " of ", release->repository, " on the Hugging Face hub, which ", hub_cache().string(),
             " does not hold; ", release->download(), " puts it there (and with --local-dir FOLDER anywhere)");
}

}  // namespace sae::inline SAE_ABI
