// A router of a few lines. The tracker counts its steps as page views by itself, as it does with any other router.

import { type ReactNode, useSyncExternalStore } from "react";

function subscribe(changed: () => void) {
  addEventListener("popstate", changed);
  return () => removeEventListener("popstate", changed);
}

export const useRoute = () => useSyncExternalStore(subscribe, () => location.pathname);

export function go(path: string) {
  history.pushState(null, "", path);
  dispatchEvent(new PopStateEvent("popstate"));
}

export function Link({ to, children }: { to: string; children: ReactNode }) {
  const follow = (event: React.MouseEvent) => {
    if (event.metaKey || event.ctrlKey || event.shiftKey) return;
    event.preventDefault();
    go(to);
  };
  return (
    <a href={to} onClick={follow} aria-current={useRoute() === to ? "page" : undefined}>
      {children}
    </a>
  );
}
