#include "instantiated.hpp"

SAE_TEST_INSTANTIATE(, float)
SAE_TEST_INSTANTIATE(, double)
