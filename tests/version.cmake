# SPDX-License-Identifier: BSL-1.0
# The version stands in two places; they agree.
cmake_minimum_required(VERSION 3.24...3.31)
file(STRINGS ${CMAKE_CURRENT_LIST_DIR}/../CMakeLists.txt project REGEX "^project\\(smx VERSION ")
file(STRINGS ${CMAKE_CURRENT_LIST_DIR}/../include/smx/detail/target.hpp macro REGEX "^ *# *define SMX_VERSION ")
string(REGEX MATCH "[0-9]+[.][0-9]+[.][0-9]+" project "${project}")
string(REGEX MATCH "[0-9]+[.][0-9]+[.][0-9]+" macro "${macro}")
if(NOT project OR NOT project STREQUAL macro)
  message(FATAL_ERROR "CMakeLists.txt says version '${project}', detail/target.hpp says '${macro}'")
endif()
message("version ${project}")
