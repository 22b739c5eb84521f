// Example: a camera application that loads a Bundle in ONNX Runtime, applies a signed patch off the frame path and goes on with the
// new weights.  The weights are handed to the session as external initialisers, so the Bundle on disk stays as it is.
//
//     swap_example BUNDLE KEY.pub PATCH FRAME OUT
//
// FRAME is one normalised image as raw float32 in the model's input shape; OUT gets its features before the swap and after it.
#include <onnxruntime_c_api.h>

#include <cstdio>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "edgeedit.h"

namespace {

std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

const OrtApi* const ort = OrtGetApiBase()->GetApi(ORT_API_VERSION);

bool ok(OrtStatus* status) {
  if (status == nullptr) return true;
  std::fprintf(stderr, "error: %s\n", ort->GetErrorMessage(status));
  ort->ReleaseStatus(status);
  return false;
}

struct Weight {
  std::vector<char> bytes;
  std::vector<int64_t> shape;
  ONNXTensorElementDataType type;
};
using Weights = std::map<std::string, Weight>;

// A session whose weights are `weights`, which must outlive it.
OrtSession* make_session(OrtEnv* env, const std::string& model, Weights& weights) {
  OrtSessionOptions* options = nullptr;
  OrtMemoryInfo* memory = nullptr;
  OrtSession* session = nullptr;
  std::vector<const char*> names;
  std::vector<OrtValue*> values;
  bool fine = ok(ort->CreateSessionOptions(&options)) && ok(ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
  for (auto& item : weights) {
    Weight& weight = item.second;
    OrtValue* value = nullptr;
    fine = fine && ok(ort->CreateTensorWithDataAsOrtValue(memory, weight.bytes.data(), weight.bytes.size(), weight.shape.data(),
                                                          weight.shape.size(), weight.type, &value));
    names.push_back(item.first.c_str());
    values.push_back(value);
  }
  fine = fine && ok(ort->AddExternalInitializers(options, names.data(), values.data(), values.size()));
  if (fine) (void)ok(ort->CreateSession(env, model.c_str(), options, &session));
  for (OrtValue* value : values) ort->ReleaseValue(value);
  ort->ReleaseMemoryInfo(memory);
  ort->ReleaseSessionOptions(options);
  return session;
}

// One frame through the first input and the first output of a session; appends the features, false when ONNX Runtime refuses.
bool run_frame(OrtSession* session, std::string& frame, std::string& features) {
  OrtAllocator* allocator = nullptr;
  OrtMemoryInfo* memory = nullptr;
  OrtTypeInfo* type = nullptr;
  const OrtTensorTypeAndShapeInfo* info = nullptr;
  OrtTensorTypeAndShapeInfo* made = nullptr;
  OrtValue *input = nullptr, *output = nullptr;
  char *input_name = nullptr, *output_name = nullptr;
  std::vector<int64_t> shape;
  size_t dims = 0, count = 0;
  void* data = nullptr;
  bool fine = ok(ort->GetAllocatorWithDefaultOptions(&allocator)) && ok(ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory)) &&
              ok(ort->SessionGetInputName(session, 0, allocator, &input_name)) &&
              ok(ort->SessionGetOutputName(session, 0, allocator, &output_name)) && ok(ort->SessionGetInputTypeInfo(session, 0, &type)) &&
              ok(ort->CastTypeInfoToTensorInfo(type, &info)) && ok(ort->GetDimensionsCount(info, &dims));
  shape.resize(dims);
  fine = fine && ok(ort->GetDimensions(info, shape.data(), dims));
  for (int64_t& length : shape) length = length < 0 ? 1 : length;  // a batch of one
  fine = fine && ok(ort->CreateTensorWithDataAsOrtValue(memory, &frame[0], frame.size(), shape.data(), dims, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &input)) &&
         ok(ort->Run(session, nullptr, &input_name, &input, 1, &output_name, 1, &output)) && ok(ort->GetTensorTypeAndShape(output, &made)) &&
         ok(ort->GetTensorShapeElementCount(made, &count)) && ok(ort->GetTensorMutableData(output, &data));
  if (fine) features.append(static_cast<const char*>(data), count * sizeof(float));
  if (made != nullptr) ort->ReleaseTensorTypeAndShapeInfo(made);
  if (output != nullptr) ort->ReleaseValue(output);
  if (input != nullptr) ort->ReleaseValue(input);
  if (type != nullptr) ort->ReleaseTypeInfo(type);
  for (char* name : {input_name, output_name}) {
    if (name != nullptr) (void)ok(ort->AllocatorFree(allocator, name));
  }
  if (memory != nullptr) ort->ReleaseMemoryInfo(memory);
  return fine;
}

ONNXTensorElementDataType element_type(const std::string& dtype) {
  return dtype == "float32"    ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT
         : dtype == "float16"  ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16
         : dtype == "bfloat16" ? ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16
                               : ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
}

}  // namespace

int main(int count, char** words) {
  if (count != 6) {
    std::fprintf(stderr, "usage: swap_example BUNDLE KEY.pub PATCH FRAME OUT\n");
    return 2;
  }
  edgeedit_error error;
  const auto fail = [&](edgeedit_status status) {
    std::fprintf(stderr, "error: %s\nhint: %s\n", error.message, error.hint);
    return static_cast<int>(status);
  };
  const std::string pem = read(words[2]), file = read(words[3]);
  std::string frame = read(words[4]), features;
  edgeedit_key key;
  edgeedit_bundle* bundle = nullptr;
  edgeedit_patch* patch = nullptr;
  if (const auto status = edgeedit_key_from_pem(pem.data(), pem.size(), &key, &error)) return fail(status);
  if (const auto status = edgeedit_bundle_open(words[1], &bundle, &error)) return fail(status);
  if (const auto status = edgeedit_patch_open(file.data(), file.size(), &key, 1, &patch, &error)) return fail(status);
  if (const auto status = edgeedit_patch_check_parent(patch, edgeedit_bundle_fingerprint(bundle), &error)) return fail(status);

  Weights weights;
  for (size_t i = 0; i < edgeedit_bundle_tensor_count(bundle); ++i) {
    edgeedit_tensor tensor;
    const void* data = nullptr;
    if (const auto status = edgeedit_bundle_tensor(bundle, i, &tensor, &data, &error)) return fail(status);
    Weight& weight = weights[tensor.name];
    weight.bytes.assign(static_cast<const char*>(data), static_cast<const char*>(data) + tensor.bytes);
    weight.shape.assign(tensor.shape, tensor.shape + tensor.dims);
    weight.type = element_type(tensor.dtype);
  }
  OrtEnv* env = nullptr;
  if (!ok(ort->CreateEnv(ORT_LOGGING_LEVEL_WARNING, "camera", &env))) return 6;
  const std::string model = std::string(words[1]) + "/model.onnx";
  OrtSession* running = make_session(env, model, weights);
  if (running == nullptr || !run_frame(running, frame, features)) return 6;

  // On a background thread in a real application: frames go on with `running`.
  Weights patched = weights;
  for (size_t i = 0; i < edgeedit_patch_tensor_count(patch); ++i) {
    edgeedit_tensor tensor;
    if (const auto status = edgeedit_patch_tensor(patch, i, &tensor, &error)) return fail(status);
    const Weight& old_weight = weights[tensor.name];
    Weight& new_weight = patched[tensor.name];
    const auto status = edgeedit_patch_apply(patch, i, old_weight.bytes.data(), old_weight.bytes.size(), new_weight.bytes.data(),
                                             new_weight.bytes.size(), &error);
    if (status != EDGEEDIT_OK) return fail(status);
  }
  OrtSession* next = make_session(env, model, patched);
  if (next == nullptr) return 6;

  // Between two frames.
  ort->ReleaseSession(running);
  running = next;
  if (!run_frame(running, frame, features)) return 6;
  std::ofstream(words[5], std::ios::binary) << features;
  std::printf("runs generation %.12s\n", edgeedit_patch_result(patch));
  ort->ReleaseSession(running);
  ort->ReleaseEnv(env);
  edgeedit_patch_close(patch);
  edgeedit_bundle_close(bundle);
  return 0;
}
