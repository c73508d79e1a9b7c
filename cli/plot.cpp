#include <sae/files/json.hpp>

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <map>
#include <set>

#include "common.hpp"
#include "figure_axis.hpp"

namespace sae::cli {

namespace {

namespace fs = std::filesystem;

struct PlotVerb : Common {
  std::vector<std::string> files, y{"explained_variance"};
  std::string x, by, title, csv;
  bool log_x = false, log_y = false, points = false;
};

/// The columns that were asked for, as texts: what is missing or null is empty.
struct Table {
  std::map<std::string, std::vector<std::string>> columns{};
  std::vector<std::size_t> lines{};  ///< of the file, from 1, of each row
};

// Far above what anybody draws; memory stays within a few times the file.
constexpr std::size_t most_bytes = std::size_t{1} << 26, most_in_line = std::size_t{1} << 20, most_rows = 1'000'000,
                      most_columns = 10'000, most_curves = 1000;

/// Reads the lines of a file that are not empty, one by one: read(line, number).
template <class Read>
void for_each_line(const std::string& file, const std::string& text, const Read& read) {
  std::size_t number = 0;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = (std::min)(text.find('\n', at), text.size());
    std::string_view line(text.data() + at, end - at);
    if (line.ends_with('\r')) line.remove_suffix(1);
    ++number;
    if (line.size() > most_in_line) throw_file(file, ": line ", number, " has more than ", most_in_line, " bytes");
    if (!line.empty()) read(line, number);
    at = end + 1;
  }
}

using Names = std::map<std::string, int>;  // a map, as messages about missing ones take it

[[noreturn]] void throw_no_column(const std::string& file, const std::string& name, const Names& known) {
  throw_file(file, ": has no column ", sae::detail::printable(name), sae::detail::held_names(known));
}

void add_row(const std::string& file, Table& table, std::size_t line) {
  if (table.lines.size() == most_rows) throw_file(file, ": has more than ", most_rows, " rows");
  table.lines.push_back(line);
}

/// JSON lines, as a training writes them. A last line that a kill has cut is left out.
Table read_log(const std::string& file, const std::string& text, const std::set<std::string>& wanted) {
  Table out;
  Names known;
  std::set<std::string> missing = wanted;
  for_each_line(file, text, [&](std::string_view line, std::size_t number) {
    const auto parsed = nlohmann::json::parse(line.begin(), line.end(), nullptr, false);
    if (!parsed.is_object()) {
      if (line.data() + line.size() == text.data() + text.size()) return;
      throw_file(file, ": line ", number, " is no JSON object, as the lines of a log are");
    }
    for (const auto& field : parsed.items())
      if (known.size() < 100) known[field.key()];
    for (const std::string& name : wanted) {
      std::string& cell = out.columns[name].emplace_back();
      const auto found = parsed.find(name);
      if (found == parsed.end()) continue;
      missing.erase(name);
      if (found->is_string())
        cell = found->get<std::string>();
      else if (found->is_structured())
        cell = "a list or an object";
      else if (!found->is_null())
        cell = found->dump();
    }
    add_row(file, out, number);
  });
  if (!out.lines.empty() && !missing.empty()) throw_no_column(file, *missing.begin(), known);
  return out;
}

/// Cells of a line of CSV, which may be in quotes, with "" for one.
std::vector<std::string> cells_of(const std::string& file, std::string_view line, std::size_t number) {
  std::vector<std::string> out(1);
  bool quoted = false;
  for (std::size_t i = 0; i < line.size(); ++i) {
    const char c = line[i];
    if (c == '"') {
      if (quoted && i + 1 < line.size() && line[i + 1] == '"') {
        out.back() += '"';
        ++i;
      } else {
        quoted = !quoted;
      }
    } else if (c == ',' && !quoted) {
      if (out.size() == most_columns) throw_file(file, ": line ", number, " has more than ", most_columns, " cells");
      out.emplace_back();
    } else {
      out.back() += c;
    }
  }
  if (quoted) throw_file(file, ": line ", number, " ends within quotes");
  return out;
}
Table read_csv(const std::string& file, const std::string& text, const std::set<std::string>& wanted) {
  Table out;
  std::vector<std::string> header;
  for_each_line(file, text, [&](std::string_view line, std::size_t number) {
    std::vector<std::string> cells = cells_of(file, line, number);
    if (header.empty()) {
      header = std::move(cells);
      Names known;
      for (const std::string& name : header) known[name];
      if (known.size() != header.size()) throw_file(file, ": a name stands twice in its first line");
      for (const std::string& name : wanted)
        if (!known.contains(name)) throw_no_column(file, name, known);
      return;
    }
    if (cells.size() != header.size())
      throw_file(file, ": line ", number, " has ", cells.size(), " cells, the first line ", header.size());
    for (std::size_t i = 0; i < cells.size(); ++i)
      if (wanted.contains(header[i])) out.columns[header[i]].push_back(std::move(cells[i]));
    add_row(file, out, number);
  });
  return out;
}

/// A cell as a number; NaN where it is empty.
double number_of(const std::string& file, const Table& table, const std::string& name, std::size_t row) {
  const std::string& cell = table.columns.at(name)[row];
  if (cell.empty()) return std::numeric_limits<double>::quiet_NaN();
  char* end = nullptr;
  const double out = std::strtod(cell.c_str(), &end);
  if (end != cell.c_str() + cell.size())
    throw_file(file, ": line ", table.lines[row], ": ", name, " = ", sae::detail::printable(cell), " is not a number");
  return out;
}

bool is_log(const std::string& file) { return fs::path(file).extension() == ".jsonl"; }

/// What tells the files apart: of RUN/log.jsonl and RUN/sweep.csv RUN, else the name without its ending; the paths where that does not do.
std::vector<std::string> names_of(const std::vector<std::string>& files) {
  std::vector<std::string> out;
  for (const std::string& file : files) {
    const fs::path path(file);
    const bool by_folder = (path.stem() == "log" || path.stem() == "sweep") && path.parent_path().has_filename();
    out.push_back((by_folder ? path.parent_path().filename() : path.stem()).string());
  }
  return std::set<std::string>(out.begin(), out.end()).size() == out.size() ? out : files;
}

void run_plot(const PlotVerb& options) {
  check_output(options);
  if (!options.csv.empty()) {
    Common table = options;
    table.out = options.csv;
    check_output(table);
  }
  const bool logs = is_log(options.files.front());
  for (const std::string& file : options.files)
    if (is_log(file) != logs) usage_error("logs (.jsonl) and tables do not go into one figure");
  if (!logs && options.x.empty()) usage_error("--x is required: which column of the table lies along the x axis");
  const std::string x = options.x.empty() ? "step" : options.x;
  std::set<std::string> wanted(options.y.begin(), options.y.end());
  wanted.insert(x);
  if (!options.by.empty()) wanted.insert(options.by);

  std::vector<Plot> plots;
  for (const std::string& y : options.y)
    plots.emplace_back(PlotOptions{.title = plots.empty() ? options.title : std::string(),
                                   .x = axis_of(x, options.log_x),
                                   .y = axis_of(y, options.log_y),
                                   .height = options.y.size() > 1 ? 220.0 : 340.0});
  const std::vector<std::string> names = names_of(options.files);
  for (std::size_t f = 0; f < options.files.size(); ++f) {
    const std::string& file = options.files[f];
    const std::string text = sae::detail::read_regular_file(file, most_bytes);
    const Table table = logs ? read_log(file, text, wanted) : read_csv(file, text, wanted);
    if (table.lines.empty()) throw_file(file, ": has no rows");
    for (std::size_t p = 0; p < plots.size(); ++p) {
      std::vector<PlotSeries> series;
      std::map<std::string, std::size_t> place;
      for (std::size_t row = 0; row < table.lines.size(); ++row) {
        const std::string group = options.by.empty() ? std::string() : table.columns.at(options.by)[row];
        const auto [found, is_new] = place.try_emplace(group, series.size());
        if (is_new) {
          if (series.size() == most_curves)
            throw_file(file, ": --by ", options.by, " makes more than ", most_curves, " curves");
          std::string name = options.by.empty() ? names[f] : options.files.size() == 1 ? group : names[f] + ": " + group;
          series.push_back({.name = std::move(name), .line = !options.points});
        }
        series[found->second].points.push_back({number_of(file, table, x, row), number_of(file, table, options.y[p], row)});
      }
      for (PlotSeries& curve : series) {
        // A NaN has no place in the order.
        const auto before = [](const PlotPoint& a, const PlotPoint& b) {
          return std::isnan(b.x) ? !std::isnan(a.x) : a.x < b.x;
        };
        if (curve.line) std::stable_sort(curve.points.begin(), curve.points.end(), before);
        curve.markers = options.points || curve.points.size() <= 60;
        plots[p].add(std::move(curve));
      }
    }
  }
  Index left_out = 0;
  for (const Plot& plot : plots) left_out += plot.left_out().total();
  if (left_out > 0) note(options, "sae: warning: ", left_out, " points cannot be shown (see the figure)");
  if (!options.csv.empty()) atomic_write_text(options.csv, Plot::csv_of(plots), {.overwrite = options.force});
  atomic_write_text(options.out, Plot::svg_of(plots), {.overwrite = options.force});
}

}  // namespace

void add_plot(CLI::App& program) {
  const auto options = std::make_shared<PlotVerb>();
  CLI::App& verb =
      add_verb(program, "plot", "Training curves of logs, or two columns of a table, as a figure (SVG).", options, run_plot);
  verb.add_option("files", options->files, "logs (.jsonl), a curve each, or tables (CSV), such as sweep.csv")->required();
  verb.add_option("--x", options->x, "column along the x axis; of logs: step, where it is not said");
  verb.add_option("--y", options->y, "columns, a figure each, one below the other (default: explained_variance)")
      ->delimiter(',');
  verb.add_option("--by", options->by, "column that says to which curve a row belongs, such as activation");
  verb.add_flag("--log-x", options->log_x, "log scale along x");
  verb.add_flag("--log-y", options->log_y, "log scale along y");
  verb.add_flag("--points", options->points, "points alone, without lines");
  verb.add_option("--title", options->title, "above the figure");
  verb.add_option("--csv", options->csv, "file for the points of the figure as CSV");
  add_out(verb, *options, "figure, an .svg file")->required();
}

}  // namespace sae::cli
