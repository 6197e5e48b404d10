// The autograd engine asks the CUDA hooks whether a device is alive. Without a driver the real hooks
// raise; these answer for one device. Compiled where it is used (device.py), for the torch there is.
#include <ATen/detail/CUDAHooksInterface.h>

#include <cstring>

namespace {

struct OneDevice final : at::CUDAHooksInterface {
    bool isBuilt() const override { return true; }
    bool hasCUDA() const override { return true; }
    bool hasPrimaryContext(at::DeviceIndex index) const override { return index == 0; }
};

void* original = nullptr;  // the table of virtual functions of torch's own hooks

}  // namespace

extern "C" void answer_for_cuda() {
    static const OneDevice ours;
    auto* hooks = const_cast<at::CUDAHooksInterface*>(&at::detail::getCUDAHooks());
    if (original == nullptr) std::memcpy(&original, static_cast<void*>(hooks), sizeof original);
    std::memcpy(static_cast<void*>(hooks), static_cast<const void*>(&ours), sizeof original);
}

extern "C" void put_back() {
    auto* hooks = const_cast<at::CUDAHooksInterface*>(&at::detail::getCUDAHooks());
    if (original != nullptr) std::memcpy(static_cast<void*>(hooks), &original, sizeof original);
}
