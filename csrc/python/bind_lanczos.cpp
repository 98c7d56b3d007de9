#include <algorithm>
#include <cmath>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "core/buffer.hpp"
#include "core/scale.hpp"
#include "cpu/eigen/singular_rotation.hpp"
#include "cpu/machine/team.hpp"
#include "cpu/products/host_backend.hpp"
#include "cpu/products/products.hpp"
#include "linalg/quadrature.hpp"
#include "python/bindings.hpp"
#include "python/blas_team.hpp"
#include "python/lanczos_run.hpp"

namespace mpfast::python {

namespace {

using DoubleArray = py::array_t<double, py::array::c_style | py::array::forcecast>;

// The team of threads lives only as long as a call, so that a run can wait in Python without threads.
template <class Real>
class HostRun : public Run {
 public:
  using Backend = cpu::HostBackend<Real>;
  // Builds the operator for one call; called with the team that the call runs on.
  using MakeApply = std::function<typename Backend::Apply(cpu::Team&)>;

  // `entries` of the matrix that the run multiplies with; 0 where somebody else multiplies.
  HostRun(index_t dim, double entries, index_t width, index_t parts, ProbeKey key, int threads, MakeApply make_apply,
          std::shared_ptr<const Energies> energies)
      : dim_(dim),
        entries_(entries),
        threads_(threads),
        energies_(std::move(energies)),
        make_apply_(std::move(make_apply)),
        idle_team_(1),
        backend_(idle_team_, dim, {}),
        lanczos_(backend_, width, parts, key) {}

  void advance(index_t steps) override {
    // The new part of the basis, and the vectors of a product.
    const index_t possible = std::clamp<index_t>(steps, 0, lanczos_.max_steps());
    const double bytes =
        static_cast<double>((possible + 4) * lanczos_.width()) * static_cast<double>(dim_) * sizeof(Real);
    if (bytes > kMostBytes) throw AllocationError("the basis of the run", bytes);
    // Products, and the orthogonalisation of each part against its own basis.
    const auto width = static_cast<double>(lanczos_.width());
    const auto blocks = static_cast<double>(lanczos_.steps() + possible);
    const double basis = blocks * width / static_cast<double>(lanczos_.parts());
    const double step = 4 * entries_ * width + 8 * static_cast<double>(dim_) * width * basis;
    with_team(step * static_cast<double>(possible), static_cast<index_t>(bytes), [&] { lanczos_.advance(steps); });
  }

  std::shared_ptr<const linalg::RitzValues> ritz(index_t steps, index_t part, index_t count) override {
    const InCore core;
    const std::lock_guard one_call_at_a_time(mutex_);
    return lanczos_.part(part).ritz(steps, count, core.poll());
  }

  py::array ritz_vectors(index_t count, index_t part) override {
    const auto found = ritz(lanczos_.part(part).steps(), part, count);
    const ConstSmallView coefficients = leading_vectors(*found, count);
    py::array_t<Real> out({static_cast<py::ssize_t>(count), static_cast<py::ssize_t>(dim_)});
    Real* data = out.mutable_data();
    const double flops = 2 * static_cast<double>(dim_) * static_cast<double>(found->size() * count);
    with_team(flops, 0, [&] { lanczos_.part(part).combine(coefficients, {data, dim_, count}); });
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
  static constexpr double kMostBytes = 0x1p60;

  template <class F>
  void with_team(double flops, index_t bytes, const F& body) {
    const InCore core;
    const std::lock_guard one_call_at_a_time(mutex_);
    with_blas_team(core, cpu::threads_for(threads_, flops), bytes, [&](cpu::Team& team) {
      backend_.use(team, make_apply_(team));
      try {
        body();
      } catch (...) {
        backend_.use(idle_team_, {});
        throw;
      }
      backend_.use(idle_team_, {});
    });
  }

  index_t dim_;
  double entries_;
  int threads_;
  std::shared_ptr<const Energies> energies_;  // filled by the operator; null where it does not
  MakeApply make_apply_;
  cpu::Team idle_team_;
  Backend backend_;
  linalg::SideBySide<Backend> lanczos_;
  std::mutex mutex_;
};

template <class Real>
std::unique_ptr<Run> matrix_run(const Matrix& w, OwnFactors factors, index_t width, index_t parts, ProbeKey key,
                                int scale_exponent, bool with_energies, int threads) {
  const cpu::Source source = w.source;
  const cpu::Side side = source.rows >= source.cols ? cpu::Side::right : cpu::Side::left;
  const index_t dim = std::min(source.rows, source.cols);
  const auto own = std::make_shared<const OwnFactors>(std::move(factors));
  const auto energies = with_energies ? std::make_shared<Energies>() : nullptr;
  auto make_apply = [=](cpu::Team& team) -> typename cpu::HostBackend<Real>::Apply {
    return [=, &team](index_t count, const Real* x, Real* z, linalg::OperatorStats* stats) {
      cpu::gram_product<Real>(team, source, own->view(), side, scale_exponent, static_cast<int>(count), x, z, stats,
                              stats == nullptr ? nullptr : energies.get());
    };
  };
  return std::make_unique<HostRun<Real>>(dim, entries_of(source), width, parts, key, cpu::resolve_threads(threads),
                                         std::move(make_apply), energies);
}

// `apply` is a Python callable: (width, dim) float64 array -> array of the same shape.
std::unique_ptr<Run> operator_run(py::function apply, index_t dim, index_t width, index_t parts, ProbeKey key,
                                  int threads) {
  const auto shared = std::shared_ptr<Reference>(new Reference(std::move(apply)), [](Reference* reference) {
    const py::gil_scoped_acquire gil;
    delete reference;
  });
  auto make_apply = [shared, dim](cpu::Team&) -> cpu::HostBackend<double>::Apply {
    return [shared, dim](index_t count, const double* x, double* z, linalg::OperatorStats*) {
      const InPython python;
      const Reference block = or_rest(
          [&] { return py::array_t<double>({static_cast<py::ssize_t>(count), static_cast<py::ssize_t>(dim)}, x); });
      const Reference returned = or_rest([&] {
        return py::reinterpret_steal<py::object>(PyObject_CallOneArg(shared->object().ptr(), block.object().ptr()));
      });
      if (!returned.object()) or_rest([] { throw py::error_already_set(); });
      const Reference converted = or_rest([&] { return DoubleArray(returned.object()); });
      const auto result = py::reinterpret_borrow<DoubleArray>(converted.object());
      if (result.ndim() != 2 || result.shape(0) != count || result.shape(1) != dim) {
        throw std::invalid_argument("the operator returned an array of the wrong shape");
      }
      std::copy_n(result.data(), count * dim, z);
    };
  };
  return std::make_unique<HostRun<double>>(dim, 0, width, parts, key, cpu::resolve_threads(threads),
                                           std::move(make_apply), nullptr);
}

// The span of a run's vectors, turned into singular triplets.
template <class Real>
py::tuple singular_rotation(const py::array_t<Real, py::array::c_style>& basis,
                            const py::array_t<Real, py::array::c_style>& image, int threads) {
  if (basis.ndim() != 2 || image.ndim() != 2 || basis.shape(0) != image.shape(0)) {
    throw std::invalid_argument("basis and image must be 2-D arrays with as many rows");
  }
  if (basis.size() == 0 || image.size() == 0) throw std::invalid_argument("basis and image must hold vectors");
  const index_t count = basis.shape(0);
  py::array_t<Real> right({basis.shape(0), basis.shape(1)});
  py::array_t<Real> left({image.shape(0), image.shape(1)});
  const auto view = [count](const auto& array, Real* data) {
    return typename cpu::HostBackend<Real>::View{data, static_cast<index_t>(array.shape(1)), count};
  };
  // What is only read lies behind the same kind of view.
  const auto v = view(basis, const_cast<Real*>(basis.data()));
  const auto y = view(image, const_cast<Real*>(image.data()));
  const auto out_v = view(right, right.mutable_data());
  const auto out_u = view(left, left.mutable_data());
  std::vector<double> values;
  {
    const InCore core;
    with_blas_team(core, threads, 3 * count * count * static_cast<index_t>(sizeof(double)),
                   [&](cpu::Team& team) { values = cpu::rotate_to_singular<Real>(team, v, y, out_v, out_u); });
  }
  return py::make_tuple(to_array(values, {static_cast<py::ssize_t>(count)}), left, right);
}

// theta, residual and weight as ritz() returns them; steps; whether the Krylov space closed.
using Block = std::tuple<DoubleArray, DoubleArray, DoubleArray, index_t, bool>;

// The iteration for the nodes takes the square of their number.
constexpr index_t kMostExtension = 1 << 16;

// One measure for each of `dropped`, side by side.
py::list measures(const std::vector<Block>& blocks, const linalg::QuadratureOptions& options,
                  const std::vector<index_t>& dropped, int threads) {
  if (options.dim < 1 || options.long_dim < options.dim) throw std::invalid_argument("need 1 <= dim <= long_dim");
  if (!(options.trace >= 0 && std::isfinite(options.trace))) throw std::invalid_argument("trace must be finite");
  if (options.extension < 0 || options.extension > kMostExtension) {
    throw std::invalid_argument("extension must be between 0 and " + std::to_string(kMostExtension));
  }
  std::vector<linalg::BlockRule> rules;
  for (const auto& [theta, residual, weight, steps, complete] : blocks) {
    if (theta.ndim() != 1 || residual.ndim() != 1 || weight.ndim() != 2) {
      throw std::invalid_argument("theta and residual must be 1-D, weight 2-D");
    }
    if (theta.size() < 1 || residual.size() != theta.size() || weight.shape(1) != theta.size() || weight.shape(0) < 1) {
      throw std::invalid_argument("theta, residual and weight must be of (size,), (size,) and (width, size)");
    }
    if (steps < 1) throw std::invalid_argument("a block has at least one step");
    const auto size = static_cast<std::size_t>(theta.size());
    rules.push_back({{theta.data(), size},
                     {residual.data(), size},
                     ConstSmallView(weight.data(), theta.size(), weight.shape(0)),
                     steps,
                     complete});
  }
  std::vector<linalg::SpectralMeasure> found(dropped.size());
  {
    const InCore core;
    const auto count = static_cast<index_t>(found.size());
    // The eigenvalues of a tridiagonal matrix, each.
    double size = 0;
    for (const auto& rule : rules) size = std::max(size, static_cast<double>(options.extension + rule.steps));
    const int useful = cpu::threads_for(threads, static_cast<double>(count) * 30 * size * size);
    cpu::Team team(static_cast<int>(std::clamp<index_t>(count, 1, useful)), core.poll());
    team.parallel_for(count, [&](index_t which, int) {
      linalg::QuadratureOptions mine = options;
      mine.dropped_probe = dropped[static_cast<std::size_t>(which)];
      found[static_cast<std::size_t>(which)] = linalg::spectral_measure(rules, mine);
    });
  }
  py::list out;
  for (const linalg::SpectralMeasure& measure : found) {
    const auto size = static_cast<py::ssize_t>(measure.nodes.size());
    out.append(py::make_tuple(to_array(measure.nodes, {size}), to_array(measure.weights, {size}), measure.atoms,
                              measure.support_edge));
  }
  return out;
}

}  // namespace

void register_lanczos(py::module_& m) {
  register_run(m);
  m.def(
      "lanczos_run",
      [](const Matrix& w, index_t width, std::uint64_t seed, std::uint32_t stream, int scale_exponent, bool precise,
         int threads, const FactorArrays& factors, bool energies, index_t parts) {
        const ProbeKey key{seed, stream};
        OwnFactors own(factors, w.source);
        auto run = precise || needs_double(w.source.dtype)
                       ? matrix_run<double>(w, std::move(own), width, parts, key, scale_exponent, energies, threads)
                       : matrix_run<float>(w, std::move(own), width, parts, key, scale_exponent, energies, threads);
        run->hold(w.owner);
        return run;
      },
      py::arg("matrix"), py::arg("width"), py::arg("seed"), py::arg("stream"), py::arg("scale_exponent"),
      py::arg("precise").noconvert(), py::arg("threads"), py::arg("factors").noconvert() = py::none(),
      py::arg("energies").noconvert() = false, py::arg("parts") = 1);
  m.def(
      "scale_exponent",
      [](const Matrix& w, const FactorArrays& factors) {
        return cpu::scale_exponent(w.source, OwnFactors(factors, w.source).view());
      },
      py::arg("matrix"), py::arg("factors").noconvert() = py::none(),
      "Power of two by which the entries are scaled down so that their squares neither over- nor underflow.");
  m.def(
      "lanczos_run_operator",
      [](py::function apply, index_t dim, index_t width, std::uint64_t seed, std::uint32_t stream, int threads,
         index_t parts) { return operator_run(std::move(apply), dim, width, parts, {seed, stream}, threads); },
      py::arg("apply"), py::arg("dim"), py::arg("width"), py::arg("seed"), py::arg("stream"), py::arg("threads"),
      py::arg("parts") = 1);
  const char* rotation =
      "Singular values, descending, and left and right vectors, (k, q) and (k, p), of W restricted to the span of "
      "`basis` (k, p), whose `image` is basis W^T (k, q). Precise to (s_1 / s_k)^2 roundings.";
  m.def("singular_rotation", &singular_rotation<float>, py::arg("basis").noconvert(), py::arg("image").noconvert(),
        py::arg("threads"), rotation);
  m.def("singular_rotation", &singular_rotation<double>, py::arg("basis").noconvert(), py::arg("image").noconvert(),
        py::arg("threads"), rotation);
  m.def(
      "spectral_measures",
      [](const std::vector<Block>& blocks, double trace, index_t dim, index_t long_dim, bool exact_trace,
         index_t extension, const std::vector<index_t>& dropped_probes, int threads) {
        linalg::QuadratureOptions options;
        options.trace = trace;
        options.dim = dim;
        options.long_dim = long_dim;
        options.exact_trace = exact_trace;
        options.extension = extension;
        return measures(blocks, options, dropped_probes, threads);
      },
      py::arg("blocks"), py::arg("trace"), py::arg("dim"), py::arg("long_dim"), py::arg("exact_trace").noconvert(),
      py::arg("extension"), py::arg("dropped_probes"), py::arg("threads"),
      "Nodes, weights, number of atoms and support edge for each of `dropped_probes`: without it, or (-1) of all.");
  m.def(
      "probe_block",
      [](index_t dim, index_t width, std::uint64_t seed, std::uint32_t stream) {
        constexpr index_t kMost = index_t{1} << 24;
        if (dim < 1 || width < 1 || dim > kMost / width) throw std::invalid_argument("need 1 to 2^24 entries");
        py::array_t<std::int8_t> out({static_cast<py::ssize_t>(width), static_cast<py::ssize_t>(dim)});
        for (index_t c = 0; c < width; ++c) {
          for (index_t j = 0; j < dim; ++j) {
            out.mutable_at(c, j) =
                static_cast<std::int8_t>(probe_entry({seed, stream}, j, static_cast<std::uint32_t>(c)));
          }
        }
        return out;
      },
      py::arg("dim"), py::arg("width"), py::arg("seed"), py::arg("stream"), "The probes of a run, for tests.");
}

}  // namespace mpfast::python
