"""The host's folders, below `base`, which a test sets."""

import os

base = ""
models_dir = ""


def use(folder):
    global base, models_dir
    base, models_dir = str(folder), os.path.join(folder, "models")
    for name in ("output", "temp", "models/diffusion_models"):
        os.makedirs(os.path.join(base, name), exist_ok=True)


def get_output_directory():
    return os.path.join(base, "output")


def get_temp_directory():
    return os.path.join(base, "temp")


def get_save_image_path(prefix, output_dir):
    """Count up from the files there are; the host also puts the date in."""
    folder, name = os.path.split(os.path.join(output_dir, prefix.replace("%year%", "2026")))
    os.makedirs(folder, exist_ok=True)
    taken = [f[len(name) + 1 :].split("_")[0] for f in os.listdir(folder) if f.startswith(name + "_")]
    count = max((int(t) for t in taken if t.isdigit()), default=0) + 1
    return folder, name, count, os.path.dirname(prefix), prefix


def get_folder_paths(kind):
    return [os.path.join(models_dir, kind)]


def get_filename_list(kind):
    (folder,) = get_folder_paths(kind)
    found = [os.path.relpath(os.path.join(r, f), folder) for r, _, fs in os.walk(folder) for f in fs]
    return sorted(found)


def get_full_path(kind, name):
    path = os.path.join(models_dir, kind, name)
    return path if os.path.isfile(path) else None
