#!/usr/bin/env bash
# Makes /mnt/cache from the machine's own NVMe: the place for data.cache_dir. Runs once per boot.
set -euo pipefail
cache=/mnt/cache
sudo mkdir -p "$cache"

if ! mountpoint -q "$cache"; then
  if mountpoint -q /opt/dlami/nvme; then
    # Amazon's deep learning images have put a file system on it already.
    sudo mount --bind /opt/dlami/nvme "$cache"
  else
    disk=$(lsblk -dnpo NAME,MODEL | awk '/Instance Storage/ {print $1; exit}')
    if [[ -n $disk ]]; then
      # Nothing on it is worth keeping: instance storage is empty after every start.
      sudo mkfs.ext4 -q -F "$disk"
      sudo mount -o noatime "$disk" "$cache"
    else
      echo "mount_nvme: no local NVMe here; $cache lies on the root volume" >&2
    fi
  fi
fi
sudo chown "$(id -u):$(id -g)" "$cache"
chmod 700 "$cache"
