# The C ABI as a shared and a static library, edgeedit-apply, and what another project needs to find them.
# Without OpenSSL nothing here is built: there is no unverified mode.
find_package(OpenSSL 1.1.1 COMPONENTS Crypto)
find_package(ZLIB)
if(NOT OPENSSL_FOUND OR NOT ZLIB_FOUND)
  message(WARNING "EDGEEDIT_NATIVE: OpenSSL or zlib was not found, so the C ABI and edgeedit-apply are not built (nothing would verify a patch)")
  return()
endif()
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(native ${CMAKE_CURRENT_SOURCE_DIR}/edgeedit/native)
add_library(edgeedit_native OBJECT ${native}/json.cc ${native}/digest.cc ${native}/manifest.cc ${native}/container.cc ${native}/sections.cc
  ${native}/bundle.cc ${native}/abi.cc)
target_include_directories(edgeedit_native PUBLIC ${native} ${CMAKE_CURRENT_SOURCE_DIR}/edgeedit/codec/core)
target_compile_options(edgeedit_native PRIVATE -O2 -fvisibility=hidden -fvisibility-inlines-hidden -Wall -Wextra -Wpedantic -Wshadow)
target_link_libraries(edgeedit_native PUBLIC OpenSSL::Crypto ZLIB::ZLIB)
if(EDGEEDIT_SANITIZE)
  target_compile_options(edgeedit_native PUBLIC -fsanitize=address,undefined -fno-sanitize-recover=all -g)
endif()

add_library(edgeedit_shared SHARED $<TARGET_OBJECTS:edgeedit_native> $<TARGET_OBJECTS:edgeedit_core>)
add_library(edgeedit_static STATIC $<TARGET_OBJECTS:edgeedit_native> $<TARGET_OBJECTS:edgeedit_core>)
foreach(kind shared static)
  set_target_properties(edgeedit_${kind} PROPERTIES OUTPUT_NAME edgeedit EXPORT_NAME ${kind} LINKER_LANGUAGE CXX)
  target_include_directories(edgeedit_${kind} INTERFACE $<BUILD_INTERFACE:${native}> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
endforeach()
set_target_properties(edgeedit_shared PROPERTIES VERSION ${PROJECT_VERSION} SOVERSION 1)
# Only the ABI is visible; the version script also hides what the C++ library's templates would export.
target_link_options(edgeedit_shared PRIVATE -Wl,--version-script=${native}/edgeedit.map)
target_link_libraries(edgeedit_shared PRIVATE OpenSSL::Crypto ZLIB::ZLIB)
target_link_libraries(edgeedit_static PUBLIC OpenSSL::Crypto ZLIB::ZLIB)

add_executable(edgeedit-apply ${native}/apply_main.cc)
target_link_libraries(edgeedit-apply PRIVATE edgeedit_native edgeedit_core)
target_compile_options(edgeedit-apply PRIVATE -O2 -Wall -Wextra)

find_path(EDGEEDIT_ORT_HEADERS onnxruntime_c_api.h HINTS ${EDGEEDIT_ONNXRUNTIME}/include PATH_SUFFIXES onnxruntime)
if(EDGEEDIT_ORT_HEADERS)
  add_executable(swap_example ${native}/examples/swap.cc)
  target_include_directories(swap_example PRIVATE ${EDGEEDIT_ORT_HEADERS})
  find_library(EDGEEDIT_ORT_LIBRARY onnxruntime HINTS ${EDGEEDIT_ONNXRUNTIME}/lib REQUIRED)
  target_link_libraries(swap_example PRIVATE edgeedit_shared ${EDGEEDIT_ORT_LIBRARY})
else()
  message(STATUS "EDGEEDIT_NATIVE: no onnxruntime_c_api.h, so the example program is not built (set EDGEEDIT_ONNXRUNTIME)")
endif()

install(TARGETS edgeedit_shared edgeedit_static EXPORT edgeeditTargets COMPONENT native)
install(TARGETS edgeedit-apply COMPONENT native)
install(FILES ${native}/edgeedit.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT native)
install(EXPORT edgeeditTargets NAMESPACE edgeedit:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/edgeedit COMPONENT native)
# The prefix is found from where the file lies, so that an installed tree can be moved.
file(RELATIVE_PATH EDGEEDIT_PC_UP /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
configure_file(${native}/edgeedit.pc.in edgeedit.pc @ONLY)
configure_file(${native}/edgeeditConfig.cmake.in edgeeditConfig.cmake @ONLY)
write_basic_package_version_file(edgeeditConfigVersion.cmake COMPATIBILITY SameMajorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/edgeedit.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT native)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/edgeeditConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/edgeeditConfigVersion.cmake
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/edgeedit COMPONENT native)

if(EDGEEDIT_TESTS)
  add_executable(digest_many tests/native/digest_many.cc)
  target_link_libraries(digest_many PRIVATE edgeedit_native edgeedit_core)
endif()
