# Consumers of one program, three ways: an installed package, the source tree inside another project, and a bare -I.
set(_prefix ${CMAKE_CURRENT_BINARY_DIR}/consumer/prefix)
set(_settings -DCMAKE_CXX_COMPILER=${CMAKE_CXX_COMPILER} -DCMAKE_BUILD_TYPE=Debug)
if(Eigen3_DIR)
  list(APPEND _settings -DEigen3_DIR=${Eigen3_DIR})
endif()

function(sae_consumer name)
  cmake_parse_arguments(arg "" "PROJECT" "OPTIONS;WORDS" ${ARGN})
  set(_binary ${CMAKE_CURRENT_BINARY_DIR}/consumer/${name})
  if(arg_WORDS)
    add_test(NAME consumer/${name}
      COMMAND ${CMAKE_COMMAND} -G ${CMAKE_GENERATOR} -S ${CMAKE_CURRENT_SOURCE_DIR}/consumer/${arg_PROJECT} -B ${_binary}
        ${_settings} ${arg_OPTIONS})
    set_tests_properties(consumer/${name} PROPERTIES PASS_REGULAR_EXPRESSION "${arg_WORDS}")
  else()
    add_test(NAME consumer/${name}
      COMMAND ${CMAKE_CTEST_COMMAND} --build-and-test ${CMAKE_CURRENT_SOURCE_DIR}/consumer/${arg_PROJECT} ${_binary}
        --build-generator ${CMAKE_GENERATOR} --build-options ${_settings} ${arg_OPTIONS} --test-command consumer)
  endif()
endfunction()

if(SAE_INSTALL)
  add_test(NAME consumer/install
    COMMAND ${CMAKE_COMMAND} --install ${PROJECT_BINARY_DIR} --prefix ${_prefix} --component library)
  set_tests_properties(consumer/install PROPERTIES FIXTURES_SETUP sae_installed)

  math(EXPR _next_minor "${PROJECT_VERSION_MINOR} + 1")
  set(_this ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})
  sae_consumer(find_package PROJECT find_package OPTIONS -DCMAKE_PREFIX_PATH=${_prefix} -DSAE_WANTED=${_this})
  sae_consumer(find_package_other_version PROJECT find_package
    OPTIONS -DCMAKE_PREFIX_PATH=${_prefix} -DSAE_WANTED=${PROJECT_VERSION_MAJOR}.${_next_minor}
    WORDS "considered but not accepted")
  set_tests_properties(consumer/find_package consumer/find_package_other_version PROPERTIES FIXTURES_REQUIRED sae_installed)
endif()

sae_consumer(fetch_content PROJECT fetch_content OPTIONS -DSAE_SOURCE=${PROJECT_SOURCE_DIR})

if(CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang")
  set(_plain ${CMAKE_CURRENT_BINARY_DIR}/consumer/plain)
  add_test(NAME consumer/plain_compile COMMAND ${CMAKE_CXX_COMPILER} -std=c++20 -pthread -I${PROJECT_SOURCE_DIR}/include
    ${_eigen_flags} ${CMAKE_CURRENT_SOURCE_DIR}/consumer/main.cpp -o ${_plain})
  add_test(NAME consumer/plain_run COMMAND ${_plain})
  set_tests_properties(consumer/plain_compile PROPERTIES FIXTURES_SETUP sae_plain)
  set_tests_properties(consumer/plain_run PROPERTIES FIXTURES_REQUIRED sae_plain)
endif()

# ---- a consumer with OpenMP, which Eigen would use by itself
find_package(OpenMP QUIET COMPONENTS CXX)
if(OpenMP_CXX_FOUND)
  add_executable(sae_openmp_consumer consumer/openmp.cpp)
  target_link_libraries(sae_openmp_consumer PRIVATE sae_dev OpenMP::OpenMP_CXX)
  add_test(NAME consumer/openmp COMMAND sae_openmp_consumer)
endif()
