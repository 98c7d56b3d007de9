#include <functional>
#include <memory>
#include <mutex>
#include <utility>

#include "cuda/products/device_backend.hpp"
#include "cuda/products/streamed.hpp"
#include "python/arguments.hpp"
#include "python/cuda/bindings.hpp"
#include "python/dtype_names.hpp"
#include "python/factors.hpp"
#include "python/lanczos_run.hpp"

namespace mpfast::python {

namespace {

template <class Real>
class DeviceRun : public Run {
 public:
  using Backend = cuda::DeviceBackend<Real>;

  DeviceRun(cuda::Stream stream, index_t dim, index_t width, index_t parts, ProbeKey key, typename Backend::Apply apply,
            std::shared_ptr<const Energies> energies)
      : energies_(std::move(energies)),
        backend_(stream, dim, interruptible(std::move(apply))),
        lanczos_(backend_, width, parts, key) {}

  void advance(index_t steps) override {
    const InCore core;
    const std::lock_guard one_call_at_a_time(mutex_);
    poll_ = core.poll();
    lanczos_.advance(steps);
  }

  std::shared_ptr<const linalg::RitzValues> ritz(index_t steps, index_t part, index_t count) override {
    const InCore core;
    const std::lock_guard one_call_at_a_time(mutex_);
    return lanczos_.part(part).ritz(steps, count, core.poll());
  }

  py::array ritz_vectors(index_t count, index_t part) override {
    const auto found = ritz(lanczos_.part(part).steps(), part, count);
    const ConstSmallView coefficients = leading_vectors(*found, count);
    const index_t dim = backend_.dim();
    py::array_t<Real> out({count, dim});
    Real* const data = out.mutable_data();
    const InCore core;
    const std::lock_guard one_call_at_a_time(mutex_);
    const auto vectors = backend_.allocate(count);
    lanczos_.part(part).combine(coefficients, vectors.slice(0, count));
    cuda::copy(backend_.stream(), data, vectors.slice(0, count).data,
               static_cast<std::size_t>(count * dim) * sizeof(Real));
    cuda::synchronize(backend_.stream());
    return out;
  }

  linalg::SymmetricBand band(index_t part) override {
    const std::lock_guard one_call_at_a_time(mutex_);
    return lanczos_.part(part).band();
  }

  double residual_near(double theta, index_t part) override {
    const std::lock_guard one_call_at_a_time(mutex_);
    return lanczos_.part(part).residual_near(theta);
  }

  std::vector<std::pair<index_t, bool>> parts() const override { return parts_of(lanczos_); }
  index_t steps() const override { return lanczos_.steps(); }
  index_t width() const override { return lanczos_.width(); }
  bool exhausted() const override { return lanczos_.exhausted(); }
  index_t zero_coordinates() const override { return lanczos_.part(0).zero_coordinates(); }
  linalg::OperatorStats stats() const override { return lanczos_.part(0).stats(); }
  const Energies* energies() const override { return energies_.get(); }

 private:
  // Ctrl-C is looked for before each product.
  typename Backend::Apply interruptible(typename Backend::Apply apply) {
    return [this, apply = std::move(apply)](cuda::Workspace<Real>& workspace, typename Backend::View x,
                                            typename Backend::View z, linalg::OperatorStats* stats) {
      if (poll_) poll_();
      apply(workspace, x, z, stats);
    };
  }

  Poll poll_;                                 // of the call that runs
  std::shared_ptr<const Energies> energies_;  // filled by the operator; null where it does not
  Backend backend_;
  linalg::SideBySide<Backend> lanczos_;
  std::mutex mutex_;
};

template <class Real>
std::unique_ptr<Run> resident_run(const DeviceMatrix& w, const OwnFactors& own, index_t width, index_t parts,
                                  ProbeKey key, int scale_exponent, bool with_energies) {
  using Backend = cuda::DeviceBackend<Real>;
  const auto factors = std::make_shared<const cuda::DeviceFactors>(w.stream, own.view(), w.source);
  const auto energies = with_energies ? std::make_shared<Energies>() : nullptr;
  const cuda::Operand operand = cuda::short_side(w.source, scale_exponent, factors->view());
  auto apply = [operand, factors, energies](cuda::Workspace<Real>& workspace, typename Backend::View x,
                                            typename Backend::View z, linalg::OperatorStats* stats) {
    cuda::gram_product(workspace, operand, static_cast<int>(x.count), x.data, z.data, cuda::Into::store, stats,
                       stats == nullptr ? nullptr : energies.get());
  };
  return std::make_unique<DeviceRun<Real>>(w.stream, operand.b.cols, width, parts, key, std::move(apply), energies);
}

// A run on its own stream.
template <class Real>
class StreamedRun : public Run {
 public:
  StreamedRun(int device, const cuda::Source& w, const OwnFactors& own, index_t width, index_t parts, ProbeKey key,
              int scale_exponent, bool with_energies, std::size_t panel_bytes)
      : stream_(device),
        factors_(stream_, own.view(), w),
        energies_(with_energies ? std::make_shared<Energies>() : nullptr),
        gram_(device, cuda::short_side(w, scale_exponent, factors_.view()), panel_bytes),
        run_(
            stream_, std::min(w.rows, w.cols), width, parts, key,
            [this](cuda::Workspace<Real>& workspace, auto x, auto z, linalg::OperatorStats* stats) {
              gram_.apply(workspace.stream(), static_cast<int>(x.count), x.data, z.data, stats,
                          stats == nullptr ? nullptr : energies_.get());
            },
            energies_) {}

  void advance(index_t steps) override { run_.advance(steps); }
  std::shared_ptr<const linalg::RitzValues> ritz(index_t steps, index_t part, index_t count) override {
    return run_.ritz(steps, part, count);
  }
  py::array ritz_vectors(index_t count, index_t part) override { return run_.ritz_vectors(count, part); }
  linalg::SymmetricBand band(index_t part) override { return run_.band(part); }
  double residual_near(double theta, index_t part) override { return run_.residual_near(theta, part); }
  std::vector<std::pair<index_t, bool>> parts() const override { return run_.parts(); }
  index_t steps() const override { return run_.steps(); }
  index_t width() const override { return run_.width(); }
  bool exhausted() const override { return run_.exhausted(); }
  index_t zero_coordinates() const override { return run_.zero_coordinates(); }
  linalg::OperatorStats stats() const override { return run_.stats(); }
  const Energies* energies() const override { return run_.energies(); }

 private:
  cuda::OwnStream stream_;
  cuda::DeviceFactors factors_;
  std::shared_ptr<Energies> energies_;
  cuda::StreamedGramProduct<Real> gram_;
  DeviceRun<Real> run_;
};

// In host memory.
cuda::Source source_of(const HostMatrix& matrix, const std::string& dtype) {
  const DType type = parse_dtype(dtype);
  if (const auto* const codes = std::get_if<CodeArrays>(&matrix)) return {coded_view(*codes, type), type};
  return view_of(std::get<py::array>(matrix), type, dtype);
}

}  // namespace

void register_cuda_lanczos(py::module_& m) {
  register_run(m);
  m.def(
      "lanczos_run",
      [](const DeviceMatrix& w, index_t width, std::uint64_t seed, std::uint32_t stream, int scale_exponent,
         bool precise, const FactorArrays& factors, bool energies, index_t parts) {
        const ProbeKey key{seed, stream};
        const OwnFactors own(factors, w.source);
        auto run = precise || needs_double(w.source.dtype)
                       ? resident_run<double>(w, own, width, parts, key, scale_exponent, energies)
                       : resident_run<float>(w, own, width, parts, key, scale_exponent, energies);
        run->hold(w.owner);
        return run;
      },
      py::arg("matrix"), py::arg("width"), py::arg("seed"), py::arg("stream"), py::arg("scale_exponent"),
      py::arg("precise").noconvert(), py::arg("factors").noconvert() = py::none(),
      py::arg("energies").noconvert() = false, py::arg("parts") = 1);
  m.def(
      "lanczos_run_streamed",
      [](const HostMatrix& matrix, const std::string& dtype, int device, index_t width, std::uint64_t seed,
         std::uint32_t stream, int scale_exponent, bool precise, std::size_t panel_bytes, const FactorArrays& factors,
         bool energies, index_t parts) -> std::unique_ptr<Run> {
        const cuda::Source w = source_of(matrix, dtype);
        check_not_empty(w);
        const OwnFactors own(factors, w);
        const ProbeKey key{seed, stream};
        std::unique_ptr<Run> run;
        if (precise || needs_double(w.dtype)) {
          run = std::make_unique<StreamedRun<double>>(device, w, own, width, parts, key, scale_exponent, energies,
                                                      panel_bytes);
        } else {
          run = std::make_unique<StreamedRun<float>>(device, w, own, width, parts, key, scale_exponent, energies,
                                                     panel_bytes);
        }
        run->hold(py::cast(matrix));
        return run;
      },
      py::arg("matrix"), py::arg("dtype"), py::arg("device"), py::arg("width"), py::arg("seed"), py::arg("stream"),
      py::arg("scale_exponent"), py::arg("precise").noconvert(), py::arg("panel_bytes"),
      py::arg("factors").noconvert() = py::none(), py::arg("energies").noconvert() = false, py::arg("parts") = 1,
      "A run on a matrix in host memory, as of Matrix.upload, which streams through the device in panels of "
      "panel_bytes.");
}

}  // namespace mpfast::python
