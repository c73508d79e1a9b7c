// Our side of compare.py: runs what it is told, a line each, and answers with what it took.
//
//   unit | product ROWS | encode ROWS | step NAME      ->      {"wall": seconds, "cpu": seconds}
#include <sae/activations/topk.hpp>
#include <sae/models/sparse_autoencoder.hpp>

#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <string>

#include "trainings.hpp"

namespace sae_bench {
namespace {

std::function<void()> make_work(const std::string& what, const std::string& argument) {
  if (what == "unit") return Unit(standard);
  if (what == "product") return Unit(std::stoi(argument), standard.D, standard.F);
  if (what == "step") {
    const std::shared_ptr<Training> training = make_training(argument, standard, threads());
    return [training] { training->step(false); };
  }
  if (what != "encode") sae::throw_value("nothing is called ", what);
  using Model = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::TopK>;
  struct Encoder {
    Model model{standard.D, standard.F, sae::TopK{.k = standard.k}};
    Matrix<float> x{};
    Model::Workspace<> workspace{};
  };
  const auto encoder = std::make_shared<Encoder>();
  encoder->workspace.keep_weights();  // as PyTorch's, they are those of a trained model
  encoder->x = rows(4096, standard.D).topRows(std::stoi(argument));
  return [encoder] { benchmark::DoNotOptimize(encoder->model.encode_into(encoder->x, encoder->workspace, threads()).size()); };
}

int answer(int, char**) {
  std::map<std::string, std::function<void()>> works;
  for (std::string line; std::getline(std::cin, line);) {
    const auto space = line.find(' ');
    auto& work = works[line];
    if (!work) work = make_work(line.substr(0, space), space == std::string::npos ? "" : line.substr(space + 1));
    const Seconds seconds = time_of(work);
    std::cout << "{\"wall\": " << seconds.wall << ", \"cpu\": " << seconds.cpu << "}" << std::endl;
  }
  return 0;
}

}  // namespace
}  // namespace sae_bench

int main(int argc, char** argv) { return sae_bench::run(argc, argv, sae_bench::answer); }
