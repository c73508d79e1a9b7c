#pragma once
#include <sae/files/output.hpp>

namespace sae::inline SAE_ABI {

struct OutputFolderOptions {
  bool overwrite = false;   ///< replace an existing PATH, and discard a PATH.partial that an interrupted run left
  bool resume = false;      ///< go on in an existing PATH.partial (and start afresh where there is none)
  bool keep = false;        ///< PATH.partial survives a failure, so that it can be resumed
  std::string marker = {};  ///< only a folder that is empty or holds this file is replaced or discarded; "": any
};

/// A folder that appears whole or not at all: everything is written in `PATH.partial`, and `commit()` syncs it and renames it to
/// PATH. With `overwrite` the old PATH is moved to `PATH.replaced`, the new one takes its name, then the old one is removed; when
/// a step fails the old one is put back. Without a commit the destructor removes PATH.partial, unless it is to be kept.
///
/// Two writers of one folder at a time are told apart by a lock on PATH.partial. Files inside are best written by OutputFile.
///
/// \throws FileError  PATH exists and `overwrite` is off; PATH.partial exists and neither `overwrite` nor `resume` is on; PATH is
///                    a file; it is in use; any system call fails.
class OutputFolder {
 public:
  explicit OutputFolder(const std::filesystem::path& path, OutputFolderOptions options = {})
      : path_(path), options_(std::move(options)), keep_(options_.keep) {
    namespace fs = std::filesystem;
    if (!path_.has_filename()) path_ = path_.parent_path();  // "out/" is "out"
    const std::string last = path_.filename().string();
    if (last.empty() || last == "." || last == "..")
      throw_file(path.string(), ": cannot be an output folder; it needs a name of its own");
    partial_ = detail::with_suffix(path_, ".partial");
    replaced_ = detail::with_suffix(path_, ".replaced");
    refuse_existing();

    std::error_code error;
    if (exists(partial_)) {
      if (!fs::is_directory(fs::symlink_status(partial_, error)))
        throw_file(path_.string(), ": cannot be written: ", partial_.string(), " is in the way and is not a folder");
      lock();
      if (!options_.resume) {
        if (!options_.overwrite)
          throw_file(path_.string(), ": an interrupted run left ", partial_.string(),
                     "; resume it, or say that it may be overwritten");
        check_marker(partial_);
        for (fs::directory_iterator at(partial_, error), end; !error && at != end; at.increment(error))
          fs::remove_all(at->path(), error);
        if (error || !fs::is_empty(partial_, error)) throw_file(partial_.string(), ": cannot be emptied");
      }
      resumed_ = options_.resume;
    } else {
      if (detail::file_system().make_folder(partial_.c_str(), 0777) != 0)
        throw_file(path_.string(), ": cannot create ", partial_.string(), ": ", detail::system_reason());
      lock();
    }
  }
  OutputFolder(OutputFolder&&) noexcept = default;
  OutputFolder& operator=(OutputFolder&&) = delete;
  ~OutputFolder() {
    if (lock_ && !keep_) {
      std::error_code ignored;
      std::filesystem::remove_all(partial_, ignored);
    }
  }

  const std::filesystem::path& path() const { return path_; }        ///< the final name
  const std::filesystem::path& partial() const { return partial_; }  ///< where to write until the commit
  std::filesystem::path operator/(const std::filesystem::path& name) const { return partial_ / name; }
  bool resumed() const { return resumed_; }  ///< PATH.partial was there and its files are kept
  /// From now on PATH.partial survives without a commit (true), or not.
  void keep(bool on = true) { keep_ = on; }

  /// Makes the folder appear under its final name, everything in it synced.
  void commit() {
    if (!lock_) throw_file(path_.string(), ": was completed already");
    sync_tree();
    refuse_existing();
    const auto rename = detail::file_system().rename;
    const bool replaces = exists(path_);
    if (replaces && rename(path_.c_str(), replaced_.c_str()) != 0)
      throw_file(path_.string(), ": cannot be moved aside: ", detail::system_reason());
    if (rename(partial_.c_str(), path_.c_str()) != 0) {
      const std::string reason = detail::system_reason();
      if (replaces) rename(replaced_.c_str(), path_.c_str());
      throw_file(path_.string(), ": cannot rename ", partial_.string(), " to it: ", reason);
    }
    if (!detail::sync_folder(path_.parent_path())) {
      const std::string reason = detail::system_reason();
      rename(path_.c_str(), partial_.c_str());
      if (replaces) rename(replaced_.c_str(), path_.c_str());
      throw_file(path_.string(), ": cannot sync the folder that holds it: ", reason);
    }
    lock_.reset();
    if (replaces) {
      std::error_code error;
      std::filesystem::remove_all(replaced_, error);
      if (error)
        throw_file(path_.string(), ": is complete, but the earlier one stays as ", replaced_.string(), ": ", error.message());
    }
  }

 private:
  static bool exists(const std::filesystem::path& path) {
    std::error_code error;
    return std::filesystem::exists(std::filesystem::symlink_status(path, error));
  }

  void refuse_existing() const {
    namespace fs = std::filesystem;
    if (exists(replaced_))
      throw_file(path_.string(), ": an interrupted replacement left the earlier folder as ", replaced_.string(),
                 "; move it back or remove it first");
    if (!exists(path_)) return;
    std::error_code error;
    if (!fs::is_directory(fs::symlink_status(path_, error))) throw_file(path_.string(), ": exists and is not a folder");
    if (!options_.overwrite) throw_file(path_.string(), ": exists; say that it may be overwritten, or choose another name");
    check_marker(path_);
  }

  void check_marker(const std::filesystem::path& folder) const {
    std::error_code error;
    if (options_.marker.empty() || std::filesystem::is_empty(folder, error) || exists(folder / options_.marker)) return;
    throw_file(folder.string(), ": holds other things (no ", options_.marker,
               " in it) and is not replaced; choose another name");
  }

  void lock() {
    lock_ = detail::Descriptor::open(partial_, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
    if (!lock_) throw_file(partial_.string(), ": cannot open: ", detail::system_reason());
    if (::flock(lock_.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
      lock_.reset();
      throw_file(path_.string(), ": is being written by somebody else (", partial_.string(), " is locked)");
    }
    // The earlier owner may have completed or removed it between open and lock.
    struct stat mine {
    }, named{};
    if (::fstat(lock_.get(), &mine) != 0 || ::lstat(partial_.c_str(), &named) != 0 || mine.st_ino != named.st_ino) {
      lock_.reset();
      throw_file(path_.string(), ": is being written by somebody else (", partial_.string(), " went away)");
    }
  }

  /// Files and folders inside, then the partial folder itself.
  void sync_tree() const {
    namespace fs = std::filesystem;
    std::error_code error;
    for (fs::recursive_directory_iterator at(partial_, error), end; !error && at != end; at.increment(error)) {
      std::error_code unknown;
      const auto status = at->symlink_status(unknown);
      bool done = true;
      if (fs::is_directory(status)) {
        done = detail::sync_folder(at->path());
      } else if (fs::is_regular_file(status)) {
        const detail::Descriptor file = detail::Descriptor::open(at->path(), O_RDONLY);
        done = file && detail::uninterrupted([&] { return detail::file_system().sync(file.get()); }) == 0;
      }
      if (!done) throw_file(at->path().string(), ": cannot write to the disk: ", detail::system_reason());
    }
    if (error) throw_file(partial_.string(), ": cannot be listed: ", error.message());
    if (!detail::sync_folder(partial_)) throw_file(partial_.string(), ": cannot write to the disk: ", detail::system_reason());
  }

  std::filesystem::path path_, partial_, replaced_;
  OutputFolderOptions options_;
  bool keep_ = false, resumed_ = false;
  detail::Descriptor lock_;
};

}  // namespace sae::inline SAE_ABI
