/* The name of an errno value, for those that a refused call may give (musl has no strerrorname_np). */
#ifndef GUESTS_ERRNO_NAME_H
#define GUESTS_ERRNO_NAME_H

#include <errno.h>
#include <stdio.h>

static inline const char *errno_name(int number)
{
    switch (number) {
    case EACCES: return "EACCES";
    case EAFNOSUPPORT: return "EAFNOSUPPORT";
    case EAGAIN: return "EAGAIN";
    case EEXIST: return "EEXIST";
    case EFAULT: return "EFAULT";
    case EINVAL: return "EINVAL";
    case ENOENT: return "ENOENT";
    case ENOMEM: return "ENOMEM";
    case ENOSYS: return "ENOSYS";
    case EPERM: return "EPERM";
    case EPROTONOSUPPORT: return "EPROTONOSUPPORT";
    case EROFS: return "EROFS";
    }
    static char other[32];
    snprintf(other, sizeof other, "errno %d", number);
    return other;
}

#endif
