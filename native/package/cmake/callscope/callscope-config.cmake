# find_package(callscope) with CMAKE_PREFIX_PATH=$(callscope cmake-path). After it:
#   callscope::api          callscope.h
#   callscope::instrument   the flags with which inlined calls are recorded too
#   CALLSCOPE_LIBRARY       libcalltrace.so, for LD_PRELOAD
#   find_package(callscope COMPONENTS instrument)   adds the flags to every target of this directory and below
get_filename_component(_callscope_root "${CMAKE_CURRENT_LIST_DIR}/../.." ABSOLUTE)
set(CALLSCOPE_LIBRARY "${_callscope_root}/libcalltrace.so")
set(CALLSCOPE_FLAGS -finstrument-functions -g)

if(NOT TARGET callscope::api)
  add_library(callscope::api INTERFACE IMPORTED)
  set_target_properties(callscope::api PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${_callscope_root}/include")
  add_library(callscope::instrument INTERFACE IMPORTED)
  set_target_properties(callscope::instrument PROPERTIES
    INTERFACE_COMPILE_OPTIONS "${CALLSCOPE_FLAGS}"
    INTERFACE_LINK_OPTIONS "-rdynamic"
    INTERFACE_LINK_LIBRARIES callscope::api)
endif()

foreach(_callscope_component IN LISTS callscope_FIND_COMPONENTS)
  if(_callscope_component STREQUAL "instrument")
    add_compile_options(${CALLSCOPE_FLAGS})
    add_link_options(-rdynamic)
    set(callscope_instrument_FOUND TRUE)
  elseif(callscope_FIND_REQUIRED_${_callscope_component})
    set(callscope_FOUND FALSE)
    set(callscope_NOT_FOUND_MESSAGE "callscope has no component ${_callscope_component}: there is 'instrument'")
  endif()
endforeach()
unset(_callscope_root)
