// What of the C interface of XLA's custom calls (its FFI, version 0.1 and later) handlers here need, so that no build needs jaxlib. The
// names of structs and fields are XLA's. Within a major version fields are only added at the end, and every struct tells its size.
// A test compares these declarations with the header that the installed jaxlib ships.
#pragma once
#include <cstddef>
#include <cstdint>

namespace ost::xla {

constexpr int kMajor = 0, kOldestMinor = 1, kNewestMinor = 3;  // versions whose structs are known to be these

struct ExtensionBase {
  std::size_t struct_size;
  int type;
  ExtensionBase* next;
};
constexpr int kMetadataExtension = 1;

struct ApiVersion {
  std::size_t struct_size;
  ExtensionBase* extension_start;
  int major_version;
  int minor_version;
};

struct Error;  // XLA's own
enum ErrorCode : int { kInvalidArgument = 3, kResourceExhausted = 8, kInternal = 13 };

struct ErrorCreateArgs {
  std::size_t struct_size;
  ExtensionBase* extension_start;
  const char* message;
  ErrorCode errc;
};

struct Api {  // further functions follow
  std::size_t struct_size;
  ExtensionBase* extension_start;
  ApiVersion api_version;
  const void* internal_api;
  Error* (*error_create)(ErrorCreateArgs*);
};

enum DataType : int { kPred = 1, kS32 = 4, kS64 = 5, kF32 = 11, kF64 = 12 };

struct Buffer {
  std::size_t struct_size;
  ExtensionBase* extension_start;
  DataType dtype;
  void* data;
  std::int64_t rank;
  std::int64_t* dims;
};

struct ByteSpan {
  const char* ptr;
  std::size_t len;
};
struct Scalar {
  DataType dtype;
  void* value;
};
struct Array {
  DataType dtype;
  std::size_t size;
  void* data;
};

constexpr int kBuffer = 1;  // the only kind of argument and result
enum AttrType : int { kArray = 1, kScalar = 3, kString = 4 };

struct Args {
  std::size_t struct_size;
  ExtensionBase* extension_start;
  std::int64_t size;
  int* types;
  void** args;
};
struct Rets {
  std::size_t struct_size;
  ExtensionBase* extension_start;
  std::int64_t size;
  int* types;
  void** rets;
};
struct Attrs {  // sorted by name
  std::size_t struct_size;
  ExtensionBase* extension_start;
  std::int64_t size;
  AttrType* types;
  ByteSpan** names;
  void** attrs;
};

constexpr int kExecute = 3;  // the stage in which a handler computes

struct CallFrame {  // a further field follows
  std::size_t struct_size;
  ExtensionBase* extension_start;
  const Api* api;
  void* ctx;
  int stage;
  Args args;
  Rets rets;
  Attrs attrs;
};

struct Metadata {  // a further field may follow
  std::size_t struct_size;
  ApiVersion api_version;
  std::uint32_t traits;
};
struct MetadataExtension {
  ExtensionBase extension_base;
  Metadata* metadata;
};

}  // namespace ost::xla
