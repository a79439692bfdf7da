# SPDX-License-Identifier: BSL-1.0
# Fails unless catch_discover_tests found tests in PROGRAM. Run in the folder that it writes to.
file(GLOB lists ${PROGRAM}*_tests*.cmake)
foreach(list IN LISTS lists)
  file(READ ${list} text)
  string(FIND "${text}" "add_test" at)
  if(NOT at EQUAL -1)
    return()
  endif()
endforeach()
message(FATAL_ERROR "${PROGRAM} lists no tests: run it by hand to see why")
