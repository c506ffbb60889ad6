import java.util.Properties;
import java.time.Duration;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.state.KeyValueBytesStoreSupplier;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.StoreBuilder;
import org.apache.kafka.streams.state.Stores;

/** What both jobs share: exactly once, one thread, and the store that PEER_STORE names (memory, rocksdb or cached). */
final class Settings {
    static final int PLACES = 8;

    private Settings() {}

    static String of(String name) {
        return System.getenv("PEER_" + name);
    }

    static <V> StoreBuilder<KeyValueStore<String, V>> store(String name, Serde<String> key, Serde<V> value) {
        String kind = of("STORE");
        KeyValueBytesStoreSupplier supplier =
            kind.equals("memory") ? Stores.inMemoryKeyValueStore(name) : Stores.persistentKeyValueStore(name);
        StoreBuilder<KeyValueStore<String, V>> builder = Stores.keyValueStoreBuilder(supplier, key, value);
        return kind.equals("cached") ? builder.withCachingEnabled() : builder;
    }

    static void run(Topology topology) throws InterruptedException {
        Properties config = new Properties();
        config.put("bootstrap.servers", of("BOOTSTRAP"));
        config.put("application.id", of("GROUP"));
        config.put("state.dir", of("STATE"));
        config.put("num.stream.threads", "1");
        config.put("processing.guarantee", "exactly_once_v2");
        config.put("commit.interval.ms", of("COMMIT_MS"));
        config.put("auto.offset.reset", "earliest");
        config.put("replication.factor", "1");
        KafkaStreams streams = new KafkaStreams(topology, config);
        streams.setUncaughtExceptionHandler(error -> {
            error.printStackTrace();
            return StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
        });
        Runtime.getRuntime().addShutdownHook(new Thread(() -> streams.close(Duration.ofSeconds(8))));
        streams.start();
        Thread.sleep(Long.MAX_VALUE);
    }
}
