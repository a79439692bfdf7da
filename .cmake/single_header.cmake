# SPDX-License-Identifier: BSL-1.0
# Writes all of <smx/smx.hpp> into one file:  cmake -D INCLUDE=include -D OUTPUT=smx.hpp -P single_header.cmake
# A header is expanded where it is first included, an .inl wherever it is. Texts stay whole strings: as a list they would lose ; and [.
cmake_minimum_required(VERSION 3.21...3.31)

# expand(path): appends the text of INCLUDE/path to `result`, with every `#include <smx/...>` line replaced by what it names.
function(expand path)
  if(path IN_LIST seen AND path MATCHES "hpp$")
    return()
  endif()
  list(APPEND seen ${path})
  file(READ "${INCLUDE}/${path}" text)
  string(REPLACE "#pragma once\n" "" text "${text}")
  string(REPLACE "// SPDX-License-Identifier: BSL-1.0\n" "" text "${text}")
  string(PREPEND text "\n")
  set(directive "\n#include <smx/")
  string(FIND "${text}" "${directive}" at)
  while(NOT at EQUAL -1)
    string(SUBSTRING "${text}" 0 ${at} before)
    math(EXPR at "${at} + 11") # past "\n#include <"
    string(SUBSTRING "${text}" ${at} -1 text)
    string(FIND "${text}" ">" end)
    string(SUBSTRING "${text}" 0 ${end} included)
    string(FIND "${text}" "\n" end)
    string(SUBSTRING "${text}" ${end} -1 text)
    string(APPEND result "${before}")
    expand("${included}")
    string(FIND "${text}" "${directive}" at)
  endwhile()
  string(APPEND result "${text}")
  set(result "${result}" PARENT_SCOPE)
  set(seen "${seen}" PARENT_SCOPE)
endfunction()

set(result "// SPDX-License-Identifier: BSL-1.0\n// smx in one file, made from include/smx: change that, not this.\n#pragma once\n")
expand(smx/smx.hpp)
file(WRITE "${OUTPUT}" "${result}")
