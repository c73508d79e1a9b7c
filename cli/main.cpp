#ifdef SAE_CLI_WITH_ZLIB
#include <sae/files/zlib.hpp>  // deflated archives, whichever verb opens them
#endif
#include "common.hpp"

#include <algorithm>
#include <csignal>
#include <iostream>

namespace sae::cli {

// One line a verb, in the order of the help; each is a file of its own.
#define SAE_VERBS(verb)                                                                                                        \
  verb(collect) verb(train) verb(sweep) verb(encode) verb(decode) verb(reconstruct) verb(eval) verb(inspect) verb(convert)     \
      verb(synth) verb(recover) verb(top) verb(search) verb(steer) verb(steer_sweep) verb(monitor) verb(circuit) verb(compare) \
          verb(plot) verb(dashboard)

#define SAE_DECLARE_VERB(name) void add_##name(CLI::App& program);
#define SAE_ADD_VERB(name) add_##name(program);
SAE_VERBS(SAE_DECLARE_VERB)

namespace {

extern "C" void ask_to_stop(int signal) { stop_signal().store(signal); }

void install_signals() {
  struct sigaction action {};
  action.sa_handler = ask_to_stop;
  // SA_RESETHAND: a second signal does what it always does.
  action.sa_flags = static_cast<int>(SA_RESTART | SA_RESETHAND);
  for (const int signal : {SIGINT, SIGTERM}) {
    struct sigaction before {};
    // Whoever started the program with the signal ignored (nohup, a background job) keeps it so.
    if (::sigaction(signal, nullptr, &before) == 0 && before.sa_handler != SIG_IGN) ::sigaction(signal, &action, nullptr);
  }
  std::signal(SIGPIPE, SIG_IGN);  // a closed pipe is an error of writing, not the end
}

/// The message of an error as one line.
std::string one_line(std::string text) {
  while (!text.empty() && text.back() == '\n') text.pop_back();
  for (char& c : text)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
  return text;
}
int fail(int code, const std::string& message) {
  std::cout.flush();
  std::fprintf(stderr, "sae: error: %s\n", one_line(message).c_str());
  return code;
}

int fail_usage(const CLI::App& program, const std::string& message) {
  std::string verb;
  for (const CLI::App* chosen : program.get_subcommands()) verb += " " + chosen->get_name();
  return fail(2, one_line(message) + " (see sae" + verb + " --help)");
}

void declare(CLI::App& program) {
  program.description("Sparse autoencoders of language models: collect activations, train, measure, interpret, steer.");
  program.footer("sae VERB --help names every option of a verb. Exit: 0 done, 1 failed, 2 wrong usage, 130 or 143 stopped.");
  program.require_subcommand(1);
  program.set_version_flag("--version",
                           sae::detail::concat("sae ", SAE_VERSION_MAJOR, ".", SAE_VERSION_MINOR, ".", SAE_VERSION_PATCH));
  SAE_VERBS(SAE_ADD_VERB)
}

int run(int count, char** words) {
  CLI::App program;
  program.name("sae");
  declare(program);
  if (count > 1 && words[1][0] != '-') {
    const auto verbs = program.get_subcommands([](const CLI::App*) { return true; });
    if (std::none_of(verbs.begin(), verbs.end(), [&](const CLI::App* verb) { return verb->check_name(words[1]); }))
      return fail(2, sae::detail::concat("there is no verb '", words[1], "' (see sae --help)"));
  }
  try {
    program.parse(count, words);
    std::cout.flush();
    if (!std::cout) return fail(1, "standard output cannot be written");
    return 0;
  } catch (const CLI::Success& help) {  // --help, --version
    program.exit(help);
    return std::cout.flush() ? 0 : 1;
  } catch (const CLI::ParseError& error) {
    return fail_usage(program, error.what());
  } catch (const UsageError& error) {
    return fail_usage(program, error.what());
  } catch (const Stopped& stopped) {
    std::fprintf(stderr, "sae: %s\n", one_line(stopped.message).c_str());
    return 128 + stopped.signal;
  } catch (const std::bad_alloc&) {
    return fail(1, "there is not enough memory for this");
  } catch (const std::exception& error) {
    return fail(1, error.what());
  } catch (...) {
    return fail(1, "something failed without a message");
  }
}

}  // namespace
}  // namespace sae::cli

int main(int count, char** words) {
  sae::cli::install_signals();
  return sae::cli::run(count, words);
}
