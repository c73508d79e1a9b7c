# Eigen 3.4.0 refuses version ranges and Eigen 5 refuses "3.4": ask without a version, check by hand.
if(NOT TARGET Eigen3::Eigen)
  find_package(Eigen3 REQUIRED CONFIG)
  if(Eigen3_VERSION VERSION_LESS 3.4 OR Eigen3_VERSION VERSION_GREATER_EQUAL 6)
    message(FATAL_ERROR "sae needs Eigen >= 3.4 and < 6, found ${Eigen3_VERSION}")
  endif()
endif()
