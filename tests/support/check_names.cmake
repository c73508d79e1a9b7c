# cmake -DPROGRAM=... -P check_names.cmake: ctest finds tests by name, and a name with ; [ ] or \ is taken apart on the way:
# the test would never run, and nobody would see it.
execute_process(COMMAND ${PROGRAM} --list-test-names-only OUTPUT_VARIABLE names RESULT_VARIABLE count ERROR_QUIET)
if(NOT names MATCHES "\n.*\n")  # Catch2 3
  execute_process(COMMAND ${PROGRAM} --list-tests --verbosity quiet OUTPUT_VARIABLE names)
endif()
string(LENGTH "${names}" length)
if(length LESS 10)
  message(FATAL_ERROR "${PROGRAM} lists no tests")
endif()
string(REPLACE ";" "<semicolon>" names "${names}")
string(REPLACE "[" "<bracket>" names "${names}")
string(REPLACE "]" "<bracket>" names "${names}")
string(REPLACE "\\" "<backslash>" names "${names}")
string(REGEX MATCHALL "[^\n]*<(semicolon|bracket|backslash)>[^\n]*" bad "${names}")
if(bad)
  message(FATAL_ERROR "these test names hold ; [ ] or \\ : ${bad}")
endif()
