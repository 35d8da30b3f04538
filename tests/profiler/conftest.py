"""Property tests share one profile: no deadline (cores are shared), and a failing example prints itself."""

from hypothesis import HealthCheck, settings

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]

settings.register_profile("profiler", deadline=None, print_blob=True, suppress_health_check=SLOW)
settings.load_profile("profiler")
