def write(store, facts): return store.folder/'report.html'
