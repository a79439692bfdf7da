# SPDX-License-Identifier: BSL-1.0
# cmake -P tests/readme.cmake: the README's first program is examples/softmax.cpp.
file(READ ${CMAKE_CURRENT_LIST_DIR}/../README.md readme)
file(READ ${CMAKE_CURRENT_LIST_DIR}/../examples/softmax.cpp program)
string(FIND "${readme}" "```cpp\n${program}```" found)
if(found EQUAL -1)
  message(FATAL_ERROR "README.md does not show examples/softmax.cpp as it is")
endif()
