"""A browser around WebKitGTK for WebKitWebDriver to steer, which keeps what sites store in the folder given.

Debian's MiniBrowser could be steered as well, but then it keeps nothing and opens new tabs behind the first.
"""

import ctypes
import sys

webkit = ctypes.CDLL("libwebkit2gtk-4.1.so.0")
gtk = ctypes.CDLL("libgtk-3.so.0")
gobject = ctypes.CDLL("libgobject-2.0.so.0")
Pointer = ctypes.c_void_p
handlers = []
windows = []


def call(function, *arguments):
    """Calls a C function with pointers, texts and whole numbers; what it returns is taken for a pointer."""
    function.restype = Pointer
    return function(*[Pointer(value) if isinstance(value, int) else value for value in arguments])


def on(instance, event, handler, parameters=2, result=None):
    handler = ctypes.CFUNCTYPE(result, *[Pointer] * parameters)(handler)
    # Python must not free it.
    handlers.append(handler)
    call(gobject.g_signal_connect_data, instance, event, handler, None, None, 0)


def new_view(name, value):
    kind = call(webkit.webkit_web_view_get_type)
    view = call(gobject.g_object_new, kind, name, value, b"is-controlled-by-automation", 1, None)
    call(gtk.gtk_widget_show, view)
    return view


def open_window(view):
    window, tabs = call(gtk.gtk_window_new, 0), call(gtk.gtk_notebook_new)
    call(gtk.gtk_notebook_set_show_tabs, tabs, 0)
    call(gtk.gtk_window_set_default_size, window, 1024, 768)
    call(gtk.gtk_container_add, window, tabs)
    call(gtk.gtk_widget_show_all, window)
    windows.append((window, tabs))
    return open_tab(view)


def open_tab(view):
    if not windows:
        return open_window(view)
    window, tabs = windows[-1]

    def show(*_):
        call(gtk.gtk_notebook_set_current_page, tabs, call(gtk.gtk_notebook_page_num, tabs, view) or 0)

    def close(*_):
        call(gtk.gtk_widget_destroy, view)
        if not call(gtk.gtk_notebook_get_n_pages, tabs):
            windows.remove((window, tabs))
            call(gtk.gtk_widget_destroy, window)
        if not windows:
            gtk.gtk_main_quit()

    call(gtk.gtk_notebook_append_page, tabs, view, None)
    # What the driver switches to is focused.
    on(view, b"grab-focus", show)
    on(view, b"close", close)
    # A link or script of the page opens a tab.
    on(view, b"create", lambda *_: open_tab(new_view(b"related-view", view)), 3, Pointer)
    call(gtk.gtk_widget_grab_focus, view)
    return view


def start(_, session, __):
    info = call(webkit.webkit_application_info_new)
    call(webkit.webkit_application_info_set_name, info, b"webkit.py")
    version = [call(getattr(webkit, f"webkit_get_{part}_version")) for part in ("major", "minor", "micro")]
    call(webkit.webkit_application_info_set_version, info, *version)
    call(webkit.webkit_automation_session_set_application_info, session, info)
    for event, opened in (b"create-web-view::tab", open_tab), (b"create-web-view::window", open_window):
        on(session, event, lambda *_, opened=opened: opened(new_view(b"web-context", context)), 2, Pointer)


call(gtk.gtk_init, None, None)
folder = sys.argv[1].encode()
folders = (b"base-data-directory", folder, b"base-cache-directory", folder, None)
manager = call(webkit.webkit_website_data_manager_new, *folders)
context = call(webkit.webkit_web_context_new_with_website_data_manager, manager)
call(webkit.webkit_web_context_set_automation_allowed, context, 1)
on(context, b"automation-started", start, 3)
gtk.gtk_main()
