#include <all_headers.hpp>

const void* pool_of_other() { return &sae::Threads::shared(); }
