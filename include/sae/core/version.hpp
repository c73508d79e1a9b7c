#pragma once

/// The only place where the version is written; CMake reads it from here.
#define SAE_VERSION_MAJOR 0
#define SAE_VERSION_MINOR 1
#define SAE_VERSION_PATCH 0

/// Inline namespace of the library (major and minor), so that two versions in one process cannot be mixed by the linker.
#define SAE_ABI v0_1

namespace sae {
inline namespace SAE_ABI {}
}  // namespace sae
