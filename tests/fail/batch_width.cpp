// expect: another width than the model's D
#include <sae/core/types.hpp>

#ifdef SAE_MUST_FAIL
using Rows = Eigen::Matrix<float, Eigen::Dynamic, 63, Eigen::RowMajor>;
#else
using Rows = Eigen::Matrix<float, Eigen::Dynamic, 64, Eigen::RowMajor>;
#endif

sae::Index rows_of(const sae::Batch<float, 64>& x) { return x.rows(); }
sae::Index call(const Rows& rows) { return rows_of(rows); }
