// expect: another scalar type than the model
#include <sae/core/types.hpp>

#ifdef SAE_MUST_FAIL
using Rows = Eigen::MatrixXd;
#else
using Rows = Eigen::MatrixXf;
#endif

sae::Index rows_of(const sae::Batch<float>& x) { return x.rows(); }
sae::Index call(const Rows& rows) { return rows_of(rows); }
