//! Measures the rows with criterion, which compares them with its last run.
#[cfg(target_os = "linux")]
fn main() {
    use std::time::Duration;

    use criterion::{BenchmarkId, Criterion};

    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20)
        .configure_from_args();
    let cells = benches::cells();
    for row in cells.chunk_by(|one, next| one.bench == next.bench) {
        if row[0].is_memory() {
            continue;
        }
        let mut group = criterion.benchmark_group(row[0].bench);
        for cell in row {
            let id = match cell.n {
                Some(n) => BenchmarkId::new(cell.implementation, n),
                None => BenchmarkId::from_parameter(cell.implementation),
            };
            group.bench_function(id, |bencher| {
                bencher.iter_custom(|operations| {
                    let sample = cell.measure(operations);
                    sample.elapsed.mul_f64(operations as f64 / sample.operations as f64)
                });
            });
        }
        group.finish();
    }
    criterion.final_summary();
}

#[cfg(not(target_os = "linux"))]
fn main() {}
