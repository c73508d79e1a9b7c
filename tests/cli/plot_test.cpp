// sae plot: figures of logs and tables, and the files that it refuses.
#include <cmath>
#include <filesystem>

#include "catch_compat.hpp"
#include "cli_test.hpp"
#include "xml_elements.hpp"

#ifdef SAE_TEST_PROGRAM

using Catch::Matchers::ContainsSubstring;
using sae_test::file_text;
using sae_test::run_sae;
using sae_test::Words;
using sae_test::write_text;
using sae_test::XmlReader;
namespace fs = std::filesystem;

namespace {

struct Work : sae_test::Workplace {
  Work() {
    fs::create_directory(at("topk-k8"));
    write_text(at("topk-k8/log.jsonl"),
               "{\"step\": 1, \"l0\": 8, \"explained_variance\": 0.25, \"gradient_norm\": null}\n"
               "{\"step\": 10, \"l0\": 8, \"explained_variance\": 0.5, \"gradient_norm\": 2}\n"
               "{\"step\": 20, \"l0\": 7.5, \"explained_varia");  // cut by a kill
    write_text(at("other.jsonl"), "{\"step\": 5, \"l0\": 100, \"explained_variance\": -0.5}\n");
    write_text(
        at("sweep.csv"),
        "name,activation,l0,explained_variance\r\n\"topk, wide\",topk,32,0.8\r\ntopk-k8,topk,8,0.6\r\nrelu,relu,50,\r\n");
  }
  sae_test::Finished plot(const Words& words) const {
    return run_sae(sae_test::with(sae_test::with({"plot"}, words), {"--out", at("out.svg"), "--force"}));
  }
};

}  // namespace

TEST_CASE("sae plot: curves of logs, a figure for each column", "[cli]") {
  const Work work;
  const auto run = work.plot({work.at("topk-k8/log.jsonl"), work.at("other.jsonl"), "--y", "explained_variance,l0", "--title",
                              "both", "--csv", work.at("out.csv")});
  INFO(run.err);
  REQUIRE(run.code == 0);
  CHECK(run.out.empty());
  CHECK(
      file_text(work.at("out.csv")) ==
      "plot,series,x,y\nexplained variance,topk-k8,1,0.25\nexplained variance,topk-k8,10,0.5\nexplained variance,other,5,-0.5\n"
      "L0 (active latents a row),topk-k8,1,8\nL0 (active latents a row),topk-k8,10,8\nL0 (active latents a row),other,5,100\n");
  const auto svg = XmlReader::read(file_text(work.at("out.svg")));
  const auto plots = svg.all("plot");
  REQUIRE(plots.size() == 2);
  CHECK(svg.all("title").size() == 1);
  CHECK(plots[0]->all("y-label").at(0)->text == "explained variance");
  CHECK(plots[1]->all("x-label").at(0)->text == "step");
  CHECK(plots[0]->all("series").at(0)->all("line").size() == 1);
  CHECK(plots[0]->all("series").at(1)->at("data-name") == "other");

  const auto missing = work.plot({work.at("topk-k8/log.jsonl"), "--y", "gradient_norm", "--csv", work.at("out.csv")});
  REQUIRE(missing.code == 0);
  CHECK_THAT(missing.err, ContainsSubstring("1 points cannot be shown"));
  CHECK(file_text(work.at("out.csv")) == "series,x,y\ntopk-k8,1,nan\ntopk-k8,10,2\n");
}

TEST_CASE("sae plot: two columns of a table, a curve for each value of a third", "[cli]") {
  const Work work;
  const auto run =
      work.plot({work.at("sweep.csv"), "--x", "l0", "--by", "activation", "--log-x", "--csv", work.at("out.csv"), "--quiet"});
  INFO(run.err);
  REQUIRE(run.code == 0);
  CHECK(file_text(work.at("out.csv")) == "series,x,y\ntopk,8,0.6\ntopk,32,0.8\nrelu,50,nan\n");  // in the order of x
  const auto svg = XmlReader::read(file_text(work.at("out.svg")));
  CHECK(svg.all("plot").at(0)->at("data-x-scale") == "log");
  CHECK(svg.all("plot").at(0)->at("data-y-scale") == "linear");
  CHECK(svg.all("note").at(0)->text == "left out: 1 not finite");
  CHECK(svg.all("line").size() == 3);  // the curve, and two in the legend
  REQUIRE(work.plot({work.at("sweep.csv"), "--x", "l0", "--points", "--log-y", "--quiet"}).code == 0);
  const auto points = XmlReader::read(file_text(work.at("out.svg")));
  CHECK(points.all("line").empty());
  CHECK(points.all("plot").at(0)->at("data-y-scale") == "log");
}

TEST_CASE("sae plot: what it refuses, in one line", "[cli]") {
  const Work work;
  const auto refused = [&](const Words& words, int code, const std::string& why) {
    const auto run = work.plot(words);
    CAPTURE(words, run.err);
    CHECK(run.code == code);
    CHECK_THAT(run.error(), ContainsSubstring(why));
    CHECK_FALSE(fs::exists(work.at("out.svg")));
  };
  const auto file = [&](const std::string& name, const std::string& text) {
    write_text(work.at(name), text);
    return work.at(name);
  };
  const std::string log = work.at("other.jsonl"), table = work.at("sweep.csv");
  refused({}, 2, "files");
  refused({log, table}, 2, "do not go into one figure");
  refused({table}, 2, "--x is required");
  refused({work.at("no.jsonl")}, 1, "no.jsonl");
  refused({work.at("topk-k8")}, 2, "--x");
  refused({work.at("topk-k8"), "--x", "l0"}, 1, "is not a regular file");
  refused({log, "--y", "loss"}, 1, "has no column loss; it holds explained_variance, l0, step");
  refused({table, "--x", "L0"}, 1, "has no column L0; it holds activation, explained_variance, l0, name");
  refused({table, "--x", "activation"}, 1, "line 2: activation = topk is not a number");
  refused({file("a.jsonl", "{\"step\": 1}\nnonsense\n{\"step\": 2}\n"), "--y", "step"}, 1, "line 2 is no JSON object");
  refused({file("b.jsonl", "{\"step\": [[1]], \"y\": 1}\n"), "--y", "y"}, 1, "step = a list or an object is not a number");
  refused({file("deep.jsonl", std::string(1'000'000, '[') + "\n{}\n"), "--y", "y"}, 1, "line 1 is no JSON object");
  refused({file("c.jsonl", ""), "--y", "y"}, 1, "has no rows");
  refused({file("d.csv", "x,y\n"), "--x", "x", "--y", "y"}, 1, "has no rows");
  refused({file("e.csv", "x,y\n1,2\n3\n"), "--x", "x", "--y", "y"}, 1, "line 3 has 1 cells, the first line 2");
  refused({file("f.csv", "x,y\n1,\"2\n"), "--x", "x", "--y", "y"}, 1, "line 2 ends within quotes");
  refused({file("g.csv", "x,x\n1,2\n"), "--x", "x", "--y", "x"}, 1, "a name stands twice");
  refused({file("h.csv", std::string("x,y\n1,2\0\n", 9)), "--x", "x", "--y", "y"}, 1, "is not a number");
  refused({file("long.csv", "x,y\n1," + std::string(2'000'000, '2') + "\n"), "--x", "x", "--y", "y"}, 1,
          "line 2 has more than 1048576 bytes");
  refused({file("wide.csv", std::string(20'000, ',') + "\n"), "--x", "x", "--y", "y"}, 1, "line 1 has more than 10000 cells");
  std::string rows;
  for (int i = 0; i < 1'000'001; ++i) rows += "{}\n";
  refused({file("rows.jsonl", rows), "--y", "y"}, 1, "has more than 1000000 rows");
  std::string many = "x,y,g\n";
  for (int i = 0; i < 1001; ++i) many += "1,2," + std::to_string(i) + "\n";
  refused({file("i.csv", many), "--x", "x", "--y", "y", "--by", "g"}, 1, "more than 1000 curves");

  const auto exists = run_sae({"plot", log, "--out", table});
  CHECK(exists.code == 1);
  CHECK_THAT(exists.error(), ContainsSubstring("exists; --force replaces it"));
  const auto csv_exists = run_sae({"plot", log, "--csv", table, "--out", work.at("out.svg")});
  CHECK(csv_exists.code == 1);
  CHECK_THAT(csv_exists.error(), ContainsSubstring("exists; --force replaces it"));
}

#endif
