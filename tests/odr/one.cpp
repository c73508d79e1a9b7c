#include <all_headers.hpp>

const void* pool_of_one() { return &sae::Threads::shared(); }
