// That this links says that no header defines a thing twice; that it returns 0, that both units share one pool of threads.
const void* pool_of_one();
const void* pool_of_other();

int main() { return pool_of_one() == pool_of_other() ? 0 : 1; }
