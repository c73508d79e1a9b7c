#pragma once
// What nearly every test would compile anew, compiled once (instantiated.cpp): half of the tests' compile time.
#include <sae/kernels/product.hpp>
#include <sae/training/optimizer.hpp>

// macro(extern) declares, macro() defines.
#define SAE_TEST_INSTANTIATE(maybe_extern, Scalar)                                                                    \
  maybe_extern template void sae::kernels::add_product_nt<Scalar>(                                                    \
      Scalar*, sae::Index, const Scalar*, sae::Index, const Scalar*, sae::Index, sae::Index, sae::Index, sae::Index); \
  maybe_extern template void sae::kernels::add_product_nn<Scalar>(                                                    \
      Scalar*, sae::Index, const Scalar*, sae::Index, const Scalar*, sae::Index, sae::Index, sae::Index, sae::Index); \
  maybe_extern template void sae::kernels::add_product_tn<Scalar>(                                                    \
      Scalar*, sae::Index, const Scalar*, sae::Index, const Scalar*, sae::Index, sae::Index, sae::Index, sae::Index); \
  maybe_extern template class sae::OptimizerState<Scalar>;

SAE_TEST_INSTANTIATE(extern, float)
SAE_TEST_INSTANTIATE(extern, double)
